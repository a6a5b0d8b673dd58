"""Dialogues from a file or the hub: ShareGPT's and UltraChat's in the prototypes' order, others in the file's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, config, load_dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from pyarrow import ArrowInvalid

from ports.errors import InputError, reason
from ports.files import check_regular, is_text

Kind = Literal["sharegpt", "ultrachat", "any"]
Message = dict[str, str]
"""``role`` (system, user or assistant) and ``content``; of an answer that was cut ``finish_reason``, "length"."""

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
COLUMNS = {"sharegpt": "conversations", "ultrachat": "messages"}
SPLITS = {"sharegpt": "train", "ultrachat": "train_{split}", "any": "train"}
TEXT = ".txt"
FILES = (".json", ".jsonl", ".parquet", TEXT)
REACH = 5.0
"""Seconds that the hub has to say whether it has a data set: loading one asks again and again, for half a minute."""

READABLE = "a JSON, parquet or text file, a directory of them, or a hub id"


class ConversationError(ValueError):
    """A dialogue that cannot be used; says why."""


@dataclass(frozen=True)
class Conversations:
    """Dialogues of ``source``: number i is row ``order[i]`` of ``rows``, from 0, as the file counts them."""

    rows: Dataset
    source: str
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def messages(self, index: int) -> list[Message]:
        """The turns of dialogue ``index``; see :func:`dialogue_of`."""
        return dialogue_of(self.rows[self.order[index]])


def dialogue_of(row: Mapping[str, Any]) -> list[Message]:
    """The turns of a row, by the first of :data:`FORMS` that it has a value for.

    A ShareGPT dialogue loses a first turn that is the assistant's. Which answers were cut is what the row's
    ``finish_reasons`` say, one an answer, or its ``finish_reason``, of the last turn.

    Raises:
        ConversationError: none of them, no turns, an unknown role, or a turn without text that can be written.
    """
    turns = FORMS[form_of(row)](row)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    last = [row.get("finish_reason")] if turns[-1:] == answers[-1:] else []
    reasons = row.get("finish_reasons") or ["stop"] * (len(answers) - 1) + last
    for turn, why in zip(answers, reasons):
        turn.update({"finish_reason": "length"} if why == "length" else {})
    return turns


def form_of(row: Mapping[str, Any]) -> str:
    """The first of :data:`FORMS` that a row has a value for; ConversationError if there is none."""
    form = next((name for name in FORMS if row.get(name) is not None), None)
    if form is None:
        raise ConversationError(f"nothing in {', '.join(map(str, row)) or 'it'}, expected one of {', '.join(FORMS)}")
    return form


def _turns(row: Mapping[str, Any], column: str, role: str, content: str) -> list[Message]:
    return [_message(turn, role, content) for turn in _listed(row, column)]


def _sharegpt(row: Mapping[str, Any]) -> list[Message]:
    read = _turns(row, "conversations", "from", "value")
    kept = read[1:] if read[0]["role"] == "assistant" else read
    if not kept:
        raise ConversationError("found one turn, the assistant's, expected a turn of the user")
    return kept


def _listed(row: Mapping[str, Any], column: str) -> Sequence[Any]:
    turns = row[column]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ConversationError(f"{column}: found {turns!r:.40}, expected a list of turns")
    return turns


def _asked(row: Mapping[str, Any], column: str, answer: str = "") -> list[Message]:
    """A user's text, and the answer to it if the row has one."""
    pairs = [("user", column), *([("assistant", answer)] if row.get(answer) is not None else [])]
    return [_message({"role": role, name: row[name]}, "role", name) for role, name in pairs]


def _message(turn: Any, role: str, content: str) -> Message:
    found = turn.get(role) if isinstance(turn, Mapping) else turn
    if not isinstance(turn, Mapping) or not isinstance(found, str) or found not in ROLES:
        raise ConversationError(f"{role}: found {found!r:.40}, expected one of {', '.join(ROLES)}")
    if not isinstance(turn.get(content), str):
        raise ConversationError(f"{content}: found {turn.get(content)!r:.40}, expected text")
    if not is_text(turn[content]):
        raise ConversationError(f"{content}: found a lone surrogate in {ascii(turn[content])[:60]}, expected text")
    return {"role": ROLES[turn[role]], "content": turn[content]}


FORMS: dict[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": lambda row: _turns(row, "messages", "role", "content"),
    "conversations": _sharegpt,
    "turns": lambda row: [_message({"role": "user", "turn": turn}, "role", "turn") for turn in _listed(row, "turns")],
    "question": lambda row: _asked(row, "question", "answer"),
    "prompt": lambda row: _asked(row, "prompt"),
    "text": lambda row: _asked(row, "text"),
}
"""By the column that says it: OpenAI's and UltraChat's, ShareGPT's, EAGLE's, GSM8K's, prompts, and a line of a .txt."""


def load_conversations(kind: Kind, data_path: str, split: str = "sft") -> Conversations:
    """ShareGPT from a JSON file or hub id, shuffled with seed 42; UltraChat and others as they lie.

    Args:
        kind: how a row is laid out; ``any``: as one of :data:`FORMS`.
        data_path: a file, a directory of files, or a hub id (``ID:CONFIG`` where a data set has several configs); for
            UltraChat ``"0"`` is the hub's ultrachat_200k.
        split: UltraChat's ``train_<split>`` on the hub.

    Raises:
        InputError: nothing readable there, or rows without a column of turns.
    """
    name = "HuggingFaceH4/ultrachat_200k" if (kind, data_path) == ("ultrachat", "0") else data_path
    rows = _load(name, SPLITS[kind].format(split=split))
    wanted = list(FORMS) if kind == "any" else [COLUMNS[kind]]
    if not set(wanted) & set(rows.column_names):
        other = next((each for each, column in COLUMNS.items() if column in rows.column_names), "any")
        door = f", or --dataset {other}" if kind != "any" and set(FORMS) & set(rows.column_names) else ""
        expected = f"{kind} rows with {' or '.join(wanted)}{door}"
        raise InputError(name, wanted[0], f"columns {', '.join(rows.column_names)}", expected)
    try:  # a null in the place of a first turn makes pyarrow count on, so that dialogues hold the turns of others
        rows.data.validate(full=True)
    except ArrowInvalid as error:
        raise InputError(name, wanted[0], reason(error), "dialogues whose first turn is no null") from error
    if len(rows) == 0:
        raise InputError(name, wanted[0], "no rows", "at least one dialogue")
    order = Dataset.from_dict({"row": range(len(rows))})
    order = order.shuffle(seed=42) if kind == "sharegpt" else order
    return Conversations(rows if kind == "any" else rows.select_columns(wanted), name, list(order["row"]))


def _load(name: str, split: str) -> Dataset:
    path = Path(name)
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        check_regular(file, "data")
    try:
        if path.is_dir():
            return load_dataset(str(path), split="train")
        if path.is_file():
            if path.suffix == TEXT:
                lines = path.read_text(encoding="utf-8").split("\n")
                return Dataset.from_dict({"text": [line for line in lines if line.strip()]})
            form = "parquet" if path.suffix == ".parquet" else "json"
            return load_dataset(form, data_files=str(path), split="train")
        hub, _, chosen = name.partition(":")
        _check_hub(hub)
        return load_dataset(hub, chosen or None, split=split)
    except InputError:
        raise
    except Exception as error:  # datasets', pyarrow's, fsspec's and the hub's own
        raise InputError(name, "data", reason(error.__cause__ or error), READABLE) from error


def _check_hub(name: str) -> None:
    """Refuse (InputError) what is no file, and no data set of the hub, or of the cache where that is not reached."""
    found = "nothing of that name here"
    if name.endswith(FILES) or name.startswith((".", "/", "~")):
        raise InputError(name, "data", found, READABLE)
    try:
        HfApi().dataset_info(name, timeout=REACH)
    except Exception as error:  # of the system, of the library that asks, and the hub's own
        none = isinstance(error, (HFValidationError, RepositoryNotFoundError))
        if none or not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).exists():
            raise InputError(name, "data", f"{found}, nor on the hub: {reason(error)}", READABLE) from error


def split_range(samples: int, parts: int) -> list[range]:
    """Rows 0..``samples``, the last included, in ``parts`` ranges; the first ones take the rest, as the prototypes'."""
    size, rest = divmod(samples + 1, parts)
    starts = [part * size + min(part, rest) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
