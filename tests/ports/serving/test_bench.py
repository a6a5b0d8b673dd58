"""The bench around the engines: turns, the fastest of them, the best k, exit codes; engines are played, or vLLM is."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

import ports.serving.bench
from ports.errors import InputError
from ports.serving.bench import start_engine
from ports.training.saving import save_draft
from tests.commands import main_of
from tests.ports.verifier.test_loading import LOST, lose
from tests.processes import await_end_of, wait_for

main = main_of("bench")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("[1, 2, 3]\n[4, 5]\n")
    return file


@pytest.fixture
def engines(monkeypatch):
    """Plays engines: by k the ``seconds`` of its answers, twice as many in its first turn, and their ``last`` token.

    By k the ``logits`` of the tokens 7 and 8 there.

    ``started`` are the k of the turns so far; after ``fails`` of them an engine fails.
    """
    monkeypatch.setattr(ports.serving.bench, "find_spec", lambda name: name)
    played = SimpleNamespace(
        seconds={0: 4.0, 1: 3.0, 2: 2.0}, last={0: 7, 1: 7, 2: 7}, started=[], fails=None, logits={}
    )

    def play(request, cores=""):
        asked = request["engine"].get("speculative_config", {})
        size, by = asked.get("num_speculative_tokens", 0), asked.get("method")
        if len(played.started) == played.fails:
            raise InputError("verifier", "vLLM", "no memory", "an engine that serves")
        place = by if by in played.seconds else size
        seconds = played.seconds[place] * (1 if place in played.started else 2)
        played.started.append(place)
        answers = [[5, 6], [played.last[size]]]
        run = {"seconds": seconds, "tokens": answers, "first_token_seconds": [0.1, 0.3]}
        run |= {"took": [seconds, seconds / 3], "grown": [[1, 2], [1]]}
        if request["told"]:
            said = [[{"5": 1.0}, {"6": 1.0}], [played.logits[size]]] if played.logits else None
            run["told"] = {"tokens": answers, "logits": said, "dtype": "bfloat16"}
        places = [2, 1][:size]
        counted = {"drafts": 4, "accepted": sum(places), "accepted_per_position": places} if size else {}
        return [{"batch_size": batch_size, **run, **counted} for batch_size in request["batch_sizes"]]

    monkeypatch.setattr(ports.serving.bench, "start_engine", play)
    return played


@pytest.fixture
def draft(hass_draft, tmp_path):
    return save_draft(hass_draft, tmp_path / "draft")


@pytest.fixture
def measured(run_app, draft, prompts):
    def run(*words):
        file = prompts.with_name("result.json")
        sizes = ("--speculative-tokens", 1, "--speculative-tokens", 2, "--max-concurrency", 1, "--max-concurrency", 4)
        code = run_app(main, draft, "--prompts", prompts, *sizes, "--no-evaluator", "--json", file, *words)
        return code, json.loads(file.read_text())

    return run


def test_engines_take_turns_and_the_fastest_turn_counts(engines, measured, prompts, capsys):
    with prompts.open("a") as lines:
        lines.write(f"{[7] * 500}\n")
    code, result = measured("--max-new-tokens", 20)
    assert (result["prompts"], result["left_out"]) == (2, 1)
    assert "1 prompts left out: too long for the verifier" in capsys.readouterr().out
    assert (code, engines.started) == (0, [0, 1, 2, 0, 1, 2])
    assert [row["seconds"] for row in result["rows"]] == 2 * [4.0, 3.0, 2.0]
    assert [row["tokens_per_second"] for row in result["rows"][:3]] == [3 / 4, 1.0, 3 / 2]
    assert [row["times_plain"] for row in result["rows"][:3]] == [1.0, 4 / 3, 2.0]
    assert result["rows"][2]["acceptance_length"] == 1 + 3 / 4
    for name, told in list(result["rows"][2]["intervals"].items())[:3]:
        assert told["low"] <= told["value"] <= told["high"], name
        assert told["value"] == pytest.approx(result["rows"][2][name])
    assert result["rows"][2]["first_token_seconds"] == 0.2
    assert {size: row["speculative_tokens"] for size, row in result["best"].items()} == {"1": 2, "4": 2}


def test_lookups_of_vllm_s_own_are_measured_beside_the_draft(engines, measured, prompts, capsys):
    """At the largest k, each a row of its own; the one that is fastest is named so, and no plot mixes it in."""
    pytest.importorskip("matplotlib")
    engines.seconds |= {"ngram": 1.0, "suffix": 8.0}
    plot = ("--plot", prompts.with_name("rates.svg"))
    code, result = measured("--beside", "ngram", "--beside", "suffix", "--rounds", 1, *plot)
    assert (code, engines.started) == (0, [0, 1, 2, "ngram", "suffix"])
    rows = {(row["by"], row["speculative_tokens"]): row["times_plain"] for row in result["rows"][:5]}
    assert rows == {("", 0): 1.0, ("", 1): 4 / 3, ("", 2): 2.0, ("ngram", 2): 4.0, ("suffix", 2): 0.5}
    assert (result["best"]["1"]["by"], "batch 1: best k = 2 ngram" in capsys.readouterr().out) == ("ngram", True)


def test_no_draft_may_be_the_best_and_answers_that_a_draft_changed_are_counted(engines, measured, prompts):
    pytest.importorskip("matplotlib")
    engines.seconds[0], engines.last[2] = 1.0, 8
    code, result = measured("--plot", prompts.with_name("rates.svg"))
    assert code == 1
    assert [row["other_answers"] for row in result["rows"][:3]] == [0, 0, 1]
    assert result["best"]["1"]["speculative_tokens"] == 0
    assert "<svg" in prompts.with_name("rates.svg").read_text()


LOGITS = {"7": 20.0, "8": 19.875}


@pytest.mark.parametrize(
    ("drafted", "code", "words"),
    [
        ({"7": 19.875, "8": 20.0}, 0, "7 without the draft, 8 with it: near tie, margin 0.125, logits 0.125"),
        ({"7": 17.0, "8": 20.0}, 1, "8 with it: no near tie, margin 3, logits 3 or 19.2 roundings apart"),
        ({"7": 20.0, "8": 19.875}, 1, "8 with it: no near tie, margin 0.125, logits 0 or 0 roundings apart"),
        ({"8": 20.0}, 1, "8 with it: no near tie, one decoding has no logits of both"),
    ],
)
def test_a_near_tie_of_vllms_is_no_fault_of_the_draft(engines, measured, capsys, drafted, code, words):
    """With 2 tokens in a proposal; logits far apart, a token that is not the likeliest, and one without logits are."""
    engines.last[2], engines.logits = 8, {0: LOGITS, 1: LOGITS, 2: drafted}
    found, result = measured()
    assert (found, result["rows"][2]["other_answers"], result["rows"][2]["near_ties"]) == (code, 1, 1 - code)
    assert words in " ".join(capsys.readouterr().out.split())


def test_an_engine_that_fails_in_a_later_round_takes_nothing_with_it(engines, measured, capsys):
    """One of the first round is all there is to say."""
    engines.fails = 4
    code, result = measured("--rounds", 3)
    assert (code, [row["seconds"] for row in result["rows"][:3]]) == (1, [4.0, 6.0, 4.0])
    assert result["failed"].startswith("k = 1 in round 2: verifier: vLLM: found no memory")
    assert "an engine failed" in capsys.readouterr().out
    engines.started, engines.fails = [], 2
    assert measured("--json", "/dev/null")[0] == 2
    assert "error: verifier: vLLM: found no memory" in capsys.readouterr().err


def test_a_verifier_that_lacks_a_tensor_is_refused_before_an_engine_starts(engines, draft, prompts, run_app, fixture):
    """vLLM would fill it with whatever was in memory."""
    lose(fixture / "verifier", LOST["renamed"][0])
    assert run_app(main, draft, "--prompts", prompts, "--no-evaluator") == 2
    assert engines.started == []


@pytest.mark.parametrize(
    ("part", "error", "code"),
    [
        ("measure", InputError("draft", "logits", "NaN", "numbers"), 2),
        ("measure", KeyboardInterrupt(), 130),
        ("print_result", BrokenPipeError(), 141),
    ],
)
def test_what_fails_after_the_turns_takes_nothing_with_it(engines, measured, monkeypatch, part, error, code):
    """The evaluator, or who reads the output."""

    def fail(*_, **options):
        raise error

    monkeypatch.setattr(ports.serving.bench, part, fail)
    found, result = measured("--evaluator")
    assert (found, len(result["rows"]), "evaluator" in result) == (code, 6, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-new-tokens", "100000"), "--max-new-tokens: found 100000"),
        (("--plot", "rates.pdf"), "--plot: found a name with .pdf"),
        (("--vocabulary", "nowhere"), "vocabulary: found"),
        (("--json", "no/such/folder.json"), "--json: found no folder"),
        (("--prompts", "none.jsonl"), "--prompts: found"),
        ((), "vllm: found nothing of that name installed"),
    ],
)
def test_refusals(engines, run_app, draft, prompts, words, said, capfd, monkeypatch):
    if not words:
        monkeypatch.setattr(ports.serving.bench, "find_spec", lambda name: None)
    assert run_app(main, draft, "--prompts", prompts, *words) == 2
    assert said in capfd.readouterr().err
    assert not engines.started


VLLM = """
import os, signal, time
from types import SimpleNamespace

SamplingParams = SimpleNamespace

class LLM:
    vllm_config = SimpleNamespace(model_config=SimpleNamespace(dtype="torch.bfloat16"))

    def __init__(self, model):
        exec(model)
        self.llm_engine, self.asked, self.together = self, [], []

    def add_request(self, name, prompt, params):
        self.asked.append(name)
        self.place = [{3: SimpleNamespace(logprob=0.5)}] if getattr(params, "logprobs", None) else None

    def has_unfinished_requests(self):
        return bool(self.asked)

    def step(self):
        self.together.append(len(self.asked))
        answer = [SimpleNamespace(token_ids=list(self.together), logprobs=self.place)]
        asked, self.asked = self.asked, []
        return [SimpleNamespace(request_id=f"{name}-0", finished=True, outputs=answer) for name in asked]

    def get_metrics(self):
        return []
"""
"""Runs ``model`` at its start; an answer is how many requests were in flight so far, step by step."""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda model: {"engine": {"model": model}, "prompts": [[1], [2, 3]], "length": 4, "batch_sizes": [1, 2]}


def test_an_engine_answers_whatever_it_says_and_is_warm_at_its_largest_batch(vllm):
    found = start_engine(vllm("os.write(1, bytes([255]))"))
    assert [run["tokens"] for run in found] == [[[2, 1], [2, 1, 1]], [[2, 1, 1, 2]] * 2]


def test_an_engine_tells_logits_before_the_clock_where_it_is_asked(vllm):
    found = start_engine({**vllm("pass"), "told": True})
    told = [run["told"] for run in found]
    assert [(each["logits"][0], each["dtype"]) for each in told] == [([{"3": 0.5}], "bfloat16")] * 2
    assert not any("logits" in run for run in found)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("print('RuntimeError: no memory', flush=True); os._exit(1)", "RuntimeError: no memory"),
        ("os._exit(0)", "nothing said"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "an end by signal 9; nothing said"),
    ],
)
def test_an_engine_that_fails_is_refused_with_its_last_error(vllm, refuses, model, said):
    with refuses(model, "vLLM", said, "an engine that serves"):
        start_engine(vllm(model))


def test_an_engine_ends_with_the_bench(vllm, fork, tmp_path):
    told = tmp_path / "told"
    model = f"open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    bench = fork(start_engine, vllm(model), PYTHONPATH=str(tmp_path))  # forks have the environment of their server
    wait_for(told)
    os.kill(bench.pid, signal.SIGKILL)
    await_end_of([bench.pid, int(told.read_text())], 30)
