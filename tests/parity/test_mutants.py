"""Mutated recordings: a clear refusal or a whole case, nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parity import fixtures
from parity.prototypes.case import read_case
from parity.prototypes.recorded import load_recorded
from tests.mutants import COUNT, try_all

NAMES = ["meta.json", "trajectory.jsonl", "first_step.safetensors", "final.safetensors"]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A copy of one case, its fixture beside it."""
    root = tmp_path / "recordings"
    root.mkdir()
    (root / "fixture").symlink_to(fixtures.RECORDINGS / "fixture", target_is_directory=True)
    shutil.copyfile(fixtures.RECORDINGS / "initial_hass_fp32.safetensors", root / "initial_hass_fp32.safetensors")
    return Path(shutil.copytree(fixtures.RECORDINGS / "hass_fp32_k3", root / "hass_fp32_k3"))


@pytest.mark.parametrize("name", [*NAMES, "../initial_hass_fp32.safetensors"])
def test_mutant_recordings(recording: Path, tmp_path: Path, name: str) -> None:
    whole = load_recorded(read_case(recording))

    def read() -> None:
        trace = load_recorded(read_case(recording))
        assert trace.curve is not None
        assert name == "meta.json" or trace.tensors.keys() or whole.tensors.keys()

    assert try_all((recording / name).resolve(), read, tmp_path).refused > COUNT // 4
