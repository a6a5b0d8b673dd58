"""Answers by vLLM itself."""

import json
import subprocess
import sys

import pytest

from parity.fixtures.architectures import build_architecture
from parity.pair import module_of
from tests.needs import VLLM
from tests.ports.conftest import words_of
from tests.serving.conftest import ROOT

pytestmark = [VLLM, pytest.mark.usefixtures("serve")]

PROMPTS, WORDS = 60, 60
"""More tokens than vLLM takes in a step."""


def test_draws_are_given_for_more_prompts_than_a_step_takes(tmp_path):
    """vLLM cuts a prompt in two, and 0.32 then turns back the generator of its draws, which a CPU's has no way to."""
    models = module_of(str(ROOT / "examples" / "pairs" / "engine.py")).MODELS
    verifier = build_architecture(models["llama"], tmp_path / "verifier")
    rows = [{"messages": [{"role": "user", "content": f"{number} " + "word " * WORDS}]} for number in range(PROMPTS)]
    data, out = tmp_path / "data.jsonl", tmp_path / "out" / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = words_of({"verifier": verifier, "data": data, "out": out, "temperature": 0.7, "max_new_tokens": 4})
    subprocess.run([sys.executable, "-m", "ports", "answers", *words, "--engine", "vllm"], check=True)
    assert len(out.read_text().splitlines()) == PROMPTS
