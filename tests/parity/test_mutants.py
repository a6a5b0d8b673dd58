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
        assert name == "meta.json" or len(trace.tensors) == len(whole.tensors)  # one of another name is found missing
        assert name == "trajectory.jsonl" or trace.curve == whole.curve

    assert try_all((copy.directory / name).resolve(), read, tmp_path).refused > COUNT // 4
