"""Where a run's samples come from: records, Speculators' prepared data, or the verifier itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ports.errors import InputError
from ports.training.data.batches import RecordDataset
from ports.training.data.feature_layers import chosen_layers
from ports.training.data.features import PROTOTYPE_DTYPE
from ports.training.data.noise import Draw
from ports.training.data.online import OnlineDataset
from ports.training.data.prepared import PreparedDataset, is_prepared, prepared_files
from ports.training.data.provenance import check_origin
from ports.training.data.records import list_records, recorded_info
from ports.training.settings import TrainingSettings
from ports.training.verifier import verifier_config


@dataclass(frozen=True)
class Needs:
    """What an algorithm reads: ``layers`` are the draft config's; HASS has none."""

    algorithm: str
    hidden_size: int
    vocab_size: int
    layers: Sequence[int] | None = None

    @property
    def widths(self) -> dict[str, int]:
        """Of a record's floating fields."""
        if self.layers is None:
            return {"hidden_state": self.hidden_size}
        return {"hidden_state": len(self.layers) * self.hidden_size, "target": self.hidden_size}


def recorded_layers(settings: TrainingSettings) -> Sequence[int] | None:
    """Where the data have their features from, if they say so; Speculators' prepared data follow its own rule."""
    if settings.online or not settings.tmpdir.is_dir():
        return None
    if is_prepared(settings.tmpdir):
        return chosen_layers("speculators", settings.basepath, verifier_config(settings.basepath).num_hidden_layers)
    info = recorded_info(list_records(settings.tmpdir))
    return None if info is None else info.feature_layers or None


def build_source(settings: TrainingSettings, needs: Needs, draw: Draw = torch.rand_like) -> RecordDataset:
    """The samples of one pass.

    Raises:
        InputError: no data below ``--tmpdir``, or data of another verifier or of other layers.
    """
    common: dict[str, Any] = {
        "widths": needs.widths,
        "vocab_size": needs.vocab_size,
        "max_len": settings.max_len,
        "alignment": settings.ttt_alignment,
        "noise": settings.noise,
        "draw": draw,
        "skip_bad": settings.on_bad_record == "skip",
    }
    if settings.online:
        return _online(settings, needs, common)
    if is_prepared(settings.tmpdir):
        files = prepared_files(settings.tmpdir)
        return PreparedDataset(files=files, **common, directory=settings.tmpdir, basepath=settings.basepath)
    files = list_records(settings.tmpdir)
    return RecordDataset(
        files=files, **common, like=check_origin(files, needs.algorithm, settings.basepath, needs.layers)
    )


def _online(settings: TrainingSettings, needs: Needs, common: dict[str, Any]) -> OnlineDataset:
    files = _files_of_ids(settings.tmpdir)
    own = PROTOTYPE_DTYPE[needs.algorithm] if settings.verifier_dtype == "default" else settings.verifier_dtype
    like = recorded_info(files)
    return OnlineDataset(files=files, **common, like=like, basepath=settings.basepath, layers=needs.layers, dtype=own)


def _files_of_ids(directory: Path) -> list[Path]:
    if is_prepared(directory):
        expected = "a directory of records; --online reads their ids alone"
        raise InputError(directory, "--online", "an arrow data set", expected)
    return list_records(directory)
