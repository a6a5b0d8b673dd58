"""Dialogues of ShareGPT and UltraChat, from a file or the hub, in the prototypes' order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset
from pyarrow import ArrowInvalid

from ports.errors import InputError, reason
from ports.files import check_regular

Kind = Literal["sharegpt", "ultrachat"]
Message = dict[str, str]
"""``role`` (system, user or assistant) and ``content``."""

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
COLUMNS = {"sharegpt": ("conversations", "from", "value"), "ultrachat": ("messages", "role", "content")}


class ConversationError(ValueError):
    """A dialogue that cannot be used; says why."""


@dataclass(frozen=True)
class Conversations:
    """Dialogues of ``source``: number i is row ``order[i]`` of ``rows``, from 0, as the file counts them."""

    rows: Dataset
    kind: Kind
    source: str
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def messages(self, index: int) -> list[Message]:
        """The turns of dialogue ``index``.

        A ShareGPT dialogue loses a first turn that is the assistant's.

        Raises:
            ConversationError: no turns, an unknown role, or a turn without text.
        """
        column, role, content = COLUMNS[self.kind]
        turns = self.rows[self.order[index]][column]
        if not isinstance(turns, Sequence) or not turns:
            raise ConversationError(f"{column}: found {turns!r:.40}, expected a list of turns")
        read = [_message(turn, role, content) for turn in turns]
        kept = read[1:] if self.kind == "sharegpt" and read[0]["role"] == "assistant" else read
        if not kept:
            raise ConversationError("found one turn, the assistant's, expected a turn of the user")
        return kept


def _message(turn: Any, role: str, content: str) -> Message:
    found = turn.get(role) if isinstance(turn, Mapping) else turn
    if not isinstance(turn, Mapping) or not isinstance(found, str) or found not in ROLES:
        raise ConversationError(f"{role}: found {found!r:.40}, expected one of {', '.join(ROLES)}")
    if not isinstance(turn.get(content), str):
        raise ConversationError(f"{content}: found {turn.get(content)!r:.40}, expected text")
    return {"role": ROLES[turn[role]], "content": turn[content]}


def load_conversations(kind: Kind, data_path: str, split: str) -> Conversations:
    """ShareGPT from a JSON file or hub id, shuffled with seed 42; UltraChat as it lies, from a file or the hub.

    Args:
        kind: how a row is laid out.
        data_path: a file, a directory of files, or a hub id; for UltraChat ``"0"`` is the hub's ultrachat_200k.
        split: UltraChat's ``train_<split>`` on the hub.

    Raises:
        InputError: nothing readable there, or rows without the column of turns.
    """
    name = "HuggingFaceH4/ultrachat_200k" if (kind, data_path) == ("ultrachat", "0") else data_path
    rows = _load(name, f"train_{split}" if kind == "ultrachat" else "train")
    column = COLUMNS[kind][0]
    if column not in rows.column_names:
        raise InputError(name, column, f"columns {', '.join(rows.column_names)}", f"{kind} rows with {column}")
    try:  # a null in the place of a first turn makes pyarrow count on, so that dialogues hold the turns of others
        rows.data.validate(full=True)
    except ArrowInvalid as error:
        raise InputError(name, column, reason(error), "dialogues whose first turn is no null") from error
    if len(rows) == 0:
        raise InputError(name, column, "no rows", "at least one dialogue")
    order = Dataset.from_dict({"row": range(len(rows))})
    return Conversations(rows, kind, name, list((order.shuffle(seed=42) if kind == "sharegpt" else order)["row"]))


def _load(name: str, split: str) -> Dataset:
    path = Path(name)
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        check_regular(file, "data_path")
    try:
        if path.is_dir():
            return load_dataset(str(path), split="train")
        if path.is_file():
            form = "parquet" if path.suffix == ".parquet" else "json"
            return load_dataset(form, data_files=str(path), split="train")
        return load_dataset(name, split=split)
    except Exception as error:  # datasets', pyarrow's, fsspec's and the hub's own
        expected = "a JSON or parquet file, a directory of them, or a hub id"
        raise InputError(name, "data_path", reason(error.__cause__ or error), expected) from error


def split_range(samples: int, parts: int) -> list[range]:
    """Rows 0..``samples``, the last included, in ``parts`` ranges; the first ones take the rest, as the prototypes'."""
    size, rest = divmod(samples + 1, parts)
    starts = [part * size + min(part, rest) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
