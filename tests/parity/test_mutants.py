"""Mutated recordings: a clear refusal or a whole case, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.prototypes.case import RecordedCase, read_case
from parity.prototypes.recorded import load_recorded
from tests.mutants import COUNT, try_all

NAMES = ["meta.json", "trajectory.jsonl", "first_step.safetensors", "final.safetensors"]


@pytest.mark.parametrize("name", [*NAMES, "../initial_eagle3_fp32.safetensors"])
def test_mutant_recordings(copy: RecordedCase, tmp_path: Path, name: str) -> None:
    whole = load_recorded(copy)

    def read() -> None:
        trace = load_recorded(read_case(copy.directory))
        assert trace.curve is not None
        assert name == "meta.json" or trace.tensors.keys() or whole.tensors.keys()

    assert try_all((copy.directory / name).resolve(), read, tmp_path).refused > COUNT // 4
