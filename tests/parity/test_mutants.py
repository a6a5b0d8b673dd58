"""Mutated recordings: a clear refusal or a whole case, nothing else."""

import pytest

from parity.prototypes.case import read_case
from parity.prototypes.recorded import load_recorded
from tests.mutants import COUNT, try_all

NAMES = ["meta.json", "trajectory.jsonl", "first_step.safetensors", "final.safetensors"]


@pytest.mark.parametrize("name", [*NAMES, "../initial_eagle3_fp32.safetensors"])
def test_mutant_recordings(copy, tmp_path, name):
    whole = load_recorded(copy)

    def read():
        trace = load_recorded(read_case(copy.directory))
        assert trace.curve is not None
        assert name == "meta.json" or trace.tensors.keys() or whole.tensors.keys()

    assert try_all((copy.directory / name).resolve(), read, tmp_path).refused > COUNT // 4
