"""Recorded cases made over, where a recorded one does not show a cause."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from parity.prototypes.case import Case, read_case
from parity.prototypes.others.batch import first_files


def with_every_row_in_the_loss(case: Case, folder: Path) -> Case:
    """The case in ``folder`` with loss masks of ones in its first batch; nothing of it was recorded."""
    target, fixture = folder / case.name, folder / case.name / "fixture"
    data = fixture / case.tmpdir.name
    data.mkdir(parents=True)
    shutil.copy(case.directory / "meta.json", target)
    for name, source in {case.initial.name: case.initial, **_fixture_files(case)}.items():
        place = target / name
        place.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    for file in first_files(case):
        sample = torch.load(file, weights_only=True)
        torch.save({**sample, "loss_mask": torch.ones_like(sample["loss_mask"])}, data / file.name)
    return read_case(target)


def _fixture_files(case: Case) -> dict[str, Path]:
    return {f"fixture/{path.name}": path for path in case.fixture.iterdir() if path.name != case.tmpdir.name}
