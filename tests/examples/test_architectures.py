"""The example of the architectures page, what its exit code says, and nightly its run on one of them.

What a run shows is tested at every push in ``tests/ports/architectures``.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from parity.pair import module_of
from ports.training.alignment import Alignment
from ports.training.attention import attention_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "architectures.py"
GOOD = {"opens": True, "difference": 3e-6, "untrained": 1.0, "trained": 1.9, "lossless": True}


@pytest.fixture(scope="module")
def example():
    return module_of(str(SCRIPT))


@pytest.fixture(scope="module")
def done(programs, tmp_path_factory):
    output = tmp_path_factory.mktemp("example") / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [programs / "python", SCRIPT, output, "--architecture", "llama4"]
    return output, subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.nightly
def test_it_ends_well_and_prints_a_line_a_draft(done):
    output, process = done
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    rows = json.loads((output / "result.json").read_text())
    assert [row["draft"] for row in rows] == ["eagle3, llama layer", "hass, llama layer"]
    lines = process.stdout.strip().split("\n")[-4:]
    assert lines[0] == "| verifier | draft | opens | logits | untrained | trained | tokens |"
    assert all(line.startswith("| llama4 | ") and line.endswith("| the same |") for line in lines[2:])


@pytest.mark.nightly
def test_a_checkpoint_that_opens_otherwise_is_seen(done, example, monkeypatch):
    """The planted fault: one number of one tensor."""
    (checkpoint,) = (done[0] / "llama4" / "eagle3_llama").glob("model*")
    assert example.opens_to_the_bit(checkpoint)

    def damaged(file):
        weights = load_file(file)
        weights["fc.weight"][0, 0] += 1e-6
        return weights

    monkeypatch.setattr(example, "load_file", damaged)
    assert not example.opens_to_the_bit(checkpoint)


@pytest.mark.nightly
def test_logits_of_another_alignment_are_seen(done, example, monkeypatch):
    """The planted fault: keys of earlier steps at the query's own position."""
    folder = done[0] / "llama4"
    (checkpoint,) = (folder / "eagle3_llama").glob("model*")
    assert example.largest_difference(checkpoint, folder / "data", "eagle3", "llama") <= example.CLOSE
    monkeypatch.setattr(example, "attention_name", lambda alignment: attention_name(Alignment.PROTOTYPE))
    assert example.largest_difference(checkpoint, folder / "data", "eagle3", "llama") > 0.01


@pytest.mark.parametrize(
    ("name", "value"), [("opens", False), ("difference", 2e-5), ("trained", 1.2), ("lossless", False)]
)
def test_what_is_not_good(example, name, value):
    assert example.good(GOOD)
    assert not example.good({**GOOD, name: value})


def test_an_unknown_architecture_is_bad_input(example, tmp_path):
    with pytest.raises(ValueError, match=r"--architecture: found gpt_oos, expected .*gpt_oss or llama4"):
        example.rows_of("gpt_oos", tmp_path, 1)
