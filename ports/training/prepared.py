"""Speculators' own prepared data: an arrow data set of ids and masks, and ``hidden_states/hs_<i>.safetensors``.

Its hidden states [T, L + 1, h] are L features and the last layer's output *before* the verifier's final norm; a target
here is after it, so that norm is applied on reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError, reason
from ports.training.data import RecordDataset
from ports.training.records import FLOATS, WHOLE, Record, check_record, plain_tensor
from ports.verifier.config import verifier_config
from ports.verifier.logits import applied, final_norm

MARKS = ("dataset_info.json", "state.json")


def is_prepared(directory: Path) -> bool:
    """Is this an arrow data set on disk?"""
    return all((directory / name).is_file() for name in MARKS)


@dataclass
class PreparedDataset(RecordDataset):
    """The same samples from Speculators' files, which its own ``ArrowDataset`` reads.

    ``directory`` is the data set's, ``basepath`` the verifier whose final norm completes the targets.
    """

    directory: Path = Path()
    basepath: str = ""

    def record(self, index: int) -> Record:
        """Eagle3's features and target, or HASS's features, as the widths ask for."""
        file = self.files[index]
        raw = self._raw(file, index)
        ids = plain_tensor(file, raw, "input_ids")
        record = {"input_ids": ids.long() if ids.dtype in WHOLE else ids, "loss_mask": raw.get("loss_mask")}
        last = self._normed(file, plain_tensor(file, raw, "verifier_last_hidden_states"))
        eagle = "target" in self.widths
        fields = {"hidden_state": raw["hidden_states"], "target": last} if eagle else {"hidden_state": last}
        return check_record(file, {**record, **fields}, self.widths, self.vocab_size)

    def clean_features(self, index: int) -> Tensor:
        """Read whole: only Speculators' reader and the norm know their dtype."""
        return self.record(index)["hidden_state"][: self.max_len]

    def _raw(self, file: Path, index: int) -> dict[str, Tensor]:
        if not file.is_file():
            raise InputError(file, "hidden_states", "no such file", "hidden states of every row")
        try:
            raw = self._rows[self.number(index)]
        except Exception as error:  # safetensors', arrow's and Speculators' own
            raise InputError(file, "hidden_states", reason(error), "what Speculators' data generation wrote") from error
        if not isinstance(raw, dict):
            raise InputError(file, "token_ids", getattr(raw, "reason", "nothing"), "the ids of the data set's row")
        return raw

    @cached_property
    def _rows(self) -> Any:
        from speculators.train.data import ArrowDataset  # what it needs is heavy, and needed here only

        return ArrowDataset(self.max_len, self.directory, on_missing="raise")

    @cached_property
    def _norm(self) -> Any:
        return final_norm(self.basepath)

    @cached_property
    def _width(self) -> int:
        return int(verifier_config(self.basepath).hidden_size)

    def _normed(self, file: Path, last: Tensor) -> Tensor:
        if last.dtype not in FLOATS or last.shape[-1] != self._width:
            found = f"{last.dtype}, width {last.shape[-1]}"
            raise InputError(file, "hidden_states", found, f"floats of 16 bits and more, the verifier's {self._width}")
        return applied(self._norm, last)


def prepared_files(directory: Path) -> list[Path]:
    """Where the hidden states of every row must lie; InputError for a data set that cannot be read, or has no rows."""
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(directory))
        rows.data.validate(full=True)  # reading past an offset that is wrong ends the process, not the call
        files = [directory / "hidden_states" / f"hs_{index}.safetensors" for index in range(len(rows))]
    except Exception as error:  # datasets' and arrow's own
        raise InputError(directory, "data", reason(error), "an arrow data set that Speculators prepared") from error
    if not files:
        raise InputError(directory, "data", "no rows", "at least one")
    return files


def prepared_texts(directory: Path, vocab_size: int) -> Iterator[Record]:
    """Ids and mask of every row; the hidden states are not read.

    Raises:
        InputError: a column that is missing or of another length, or an id that the verifier does not have.
    """
    from datasets import load_from_disk

    for number, row in enumerate(load_from_disk(str(directory)).with_format("numpy")):
        try:
            record = {name: torch.as_tensor(row[name]).long() for name in ("input_ids", "loss_mask")}
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            expected = "input_ids and loss_mask, as Speculators prepares them"
            raise InputError(directory, f"row {number}", reason(error), expected) from error
        yield check_record(directory, record, {}, vocab_size)
