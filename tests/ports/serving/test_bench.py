"""The bench around the engines: turns, the fastest of them, the best k, exit codes; engines are played."""

from __future__ import annotations

import json
import sys

import pytest

import ports.serving.bench
from ports.errors import InputError
from ports.serving.bench import main, start_engine
from ports.training.saving import save_draft

SECONDS = {0: 4.0, 1: 3.0, 2: 2.0}
"""Of an engine's answers by k; the first turn of each takes twice as long."""


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("[1, 2, 3]\n[4, 5]\n")
    return file


@pytest.fixture
def engines(monkeypatch):
    """Plays engines; gives the sizes that were started, and the answers' last token by k."""
    monkeypatch.setattr(ports.serving.bench, "find_spec", lambda name: name)
    started: list[int] = []
    last = dict.fromkeys(SECONDS, 7)

    def play(request, cores=""):
        size = request["engine"].get("speculative_config", {}).get("num_speculative_tokens", 0)
        seconds = SECONDS[size] * (1 if size in started else 2)
        started.append(size)
        run = {"seconds": seconds, "tokens": [[5, 6], [last[size]]], "first_token_seconds": [0.1, 0.3]}
        counted = {"drafts": 4, "accepted_per_position": [2, 1][:size]} if size else {}
        return [{"batch_size": batch_size, **run, **counted} for batch_size in request["batch_sizes"]]

    monkeypatch.setattr(ports.serving.bench, "start_engine", play)
    return started, last


def bench(*words) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def draft(hass_draft, tmp_path):
    return save_draft(hass_draft, tmp_path / "draft")


def measured(draft, prompts, *words):
    file = prompts.with_name("result.json")
    sizes = ("--k", 1, "--k", 2, "--batch-size", 1, "--batch-size", 4)
    code = bench(draft, "--prompts", prompts, *sizes, "--no-evaluator", "--json", file, *words)
    return code, json.loads(file.read_text())


def test_engines_take_turns_and_the_fastest_turn_counts(engines, draft, prompts):
    code, result = measured(draft, prompts)
    assert (code, engines[0]) == (0, [0, 1, 2, 0, 1, 2])
    assert [row["seconds"] for row in result["rows"]] == 2 * [4.0, 3.0, 2.0]
    assert [row["tokens_per_second"] for row in result["rows"][:3]] == [3 / 4, 1.0, 3 / 2]
    assert [row["times_plain"] for row in result["rows"][:3]] == [1.0, 4 / 3, 2.0]
    assert result["rows"][2]["acceptance_length"] == 1 + 3 / 4
    assert result["rows"][2]["first_token_seconds"] == 0.2
    assert {size: row["speculative_tokens"] for size, row in result["best"].items()} == {"1": 2, "4": 2}


def test_no_draft_is_the_best_where_none_helps(engines, draft, prompts, monkeypatch):
    monkeypatch.setitem(SECONDS, 0, 1.0)
    assert measured(draft, prompts)[1]["best"]["1"]["speculative_tokens"] == 0


def test_answers_that_a_draft_changed_are_counted_and_exit_code_1(engines, draft, prompts):
    engines[1][2] = 8
    code, result = measured(draft, prompts)
    assert code == 1
    assert [row["other_answers"] for row in result["rows"][:3]] == [0, 0, 1]


def test_the_plot_is_drawn(engines, draft, prompts):
    pytest.importorskip("matplotlib")
    measured(draft, prompts, "--plot", prompts.with_name("rates.svg"))
    assert "<svg" in prompts.with_name("rates.svg").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tokens", "100000"), "max_position_embeddings: found"),
        (("--json", "no/such/folder.json"), "--json: found no folder"),
        (("--prompts", "none.jsonl"), "--prompts: found"),
    ],
)
def test_refusals(engines, draft, prompts, words, said, capfd):
    assert bench(draft, "--prompts", prompts, *words) == 2
    assert said in capfd.readouterr().err
    assert not engines[0]


def test_without_vllm_the_command_says_what_is_missing(draft, prompts, monkeypatch, capfd):
    monkeypatch.setattr(ports.serving.bench, "find_spec", lambda name: None)
    assert bench(draft, "--prompts", prompts) == 2
    assert "vllm: found nothing of that name installed" in capfd.readouterr().err


def test_an_engine_that_fails_is_refused_with_its_last_error(monkeypatch, tmp_path):
    fails = tmp_path / "python"
    fails.write_text(f"#!{sys.executable}\nraise SystemExit('ValueError: no such model\\nand more')\n")
    fails.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fails))
    with pytest.raises(InputError, match="verifier: vLLM: found ValueError: no such model, expected an engine"):
        start_engine({"engine": {"model": "verifier"}})
