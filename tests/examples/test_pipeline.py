"""The examples run as they are documented, in smaller sizes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from ports.evaluate.prompts import read_questions
from ports.training.records import list_records
from ports.verifier.tokenizer import open_tokenizer

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny_llama(programs):
    def run(output, *words):
        command = [programs / "python", ROOT / "examples" / "tiny_llama.py", output, *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)

    return run


@pytest.fixture(scope="module")
def done(tiny_llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("tiny") / "run"
    return output, tiny_llama(output, "--passes", 8, "--tokens", 32)


def test_both_drafts_reach_the_goal_on_held_out_text(done):
    output, process = done
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    rows = json.loads((output / "result.json").read_text())
    assert [row["trained"]["algorithm"] for row in rows] == ["eagle3", "hass"]
    for row in rows:
        trained, untrained = row["trained"], row["untrained"]
        assert trained["acceptance_length"] >= 1.5 * untrained["acceptance_length"]
        assert trained["lossless"] is untrained["lossless"] is True
        assert trained["tokens"] == untrained["tokens"] == 320
        assert (trained["untrained"], untrained["untrained"]) == (False, True)


def test_the_prompts_were_not_trained_on(done):
    data = done[0] / "data"
    tokenizer = open_tokenizer(str(data / "verifier"))
    seen, held_out = (
        {tuple(prompt.ids) for prompt in read_questions(data / name, lambda: tokenizer, 512)}
        for name in ("seen.jsonl", "held_out.jsonl")
    )
    assert (len(seen), len(held_out)) == (32, 10)
    files = list_records(data / "data_eagle3")
    texts = [tuple(torch.load(file, weights_only=True)["input_ids"].tolist()) for file in files]
    assert len(texts) == 64
    assert all(starts_with(text, seen) for text in texts[32:])  # the verifier's own answers
    assert sum(starts_with(text, held_out) for text in texts) == 0


def starts_with(text, prompts):
    return any(text[: len(prompt)] == prompt for prompt in prompts)


def test_drafts_that_learned_nothing_are_exit_code_1(done, tiny_llama, tmp_path):
    """The planted fault: one pass, most of which warms up."""
    output, _ = done
    again = tmp_path / "again"
    again.mkdir()
    (again / "data").symlink_to(output / "data")
    process = tiny_llama(again, "--passes", 1, "--tokens", 16, "--algorithm", "hass")
    assert process.returncode == 1, process.stderr[-2000:]
    assert json.loads((again / "result.json").read_text())[0]["ratio"] < 1.5


def test_data_of_another_recipe_are_refused(done, tiny_llama):
    output, _ = done
    process = tiny_llama(output, "--held-out", 9)
    assert process.returncode == 2
    assert "recipe: found" in process.stderr
