"""What is counted, what the command prints and writes of it, and its exit codes."""

from __future__ import annotations

import json
import sys

import pytest
from safetensors.torch import load_file, save_file

import ports.evaluate.__main__
from ports.evaluate.decode import Answer, Limits
from ports.evaluate.drafter import drafter_of, untrained
from ports.evaluate.measure import Counters, Evaluation, evaluate
from ports.evaluate.verifier import end_tokens


def test_a_position_counts_proposals_accepted_at_least_that_far():
    found = Counters.of([0, 3, 1, 1, 0, 2], size=3)
    assert found == Counters(drafts=6, accepted_per_position=(4, 2, 1))
    assert found.acceptance_length == 1 + 7 / 6
    assert found.rate_per_position == [4 / 6, 2 / 6, 1 / 6]


def test_without_proposals_a_pass_gives_one_token():
    found = Counters.of([], size=2)
    assert found == Counters(0, (0, 0))
    assert (found.acceptance_length, found.rate_per_position) == (1.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("plain", "drafted", "found"),
    [
        ([5, 6], [5, 6], None),
        ([5, 6], [5, 7], (1, 6, 7)),
        ([5, 6], [5], (1, 6, -1)),
        ([5], [5, 6, 7], (1, -1, 6)),
    ],
)
def test_the_first_token_that_differs_is_reported(plain, drafted, found):
    told = Evaluation(1, [Answer([1]), Answer(drafted)], [Answer([1]), Answer(plain)]).differences
    assert [tuple(each.values()) for each in told] == ([(1, *found)] if found else [])


@pytest.fixture
def command(pair, prompts, tmp_path, monkeypatch, capsys):
    """Runs the command here; gives exit code, JSON result and what was printed."""
    monkeypatch.setattr("ports.commands.hush_libraries", lambda: None)
    file, answer = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    file.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))

    def run(*words):
        line = ["evaluate", pair.directory, "--prompts", file, "--json", answer, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        with pytest.raises(SystemExit) as stop:
            ports.evaluate.__main__.main()
        result = json.loads(answer.read_text()) if answer.exists() else {}
        return stop.value.code or 0, result, capsys.readouterr()

    return run


def test_the_result_is_that_of_evaluating(command, pair, prompts):
    code, result, said = command("--tokens", 11, "--ignore-eos")
    found = evaluate(pair.judge, pair.drafter, prompts, Limits(11), 3)
    assert code == 0
    assert result["lossless"] is True
    assert (result["prompts"], result["left_out"], result["tokens"]) == (6, 0, 66)
    assert (result["speculative_tokens"], result["untrained"]) == (3, False)
    assert result["drafts"] == found.counters.drafts > 0
    assert result["accepted_per_position"] == list(found.counters.accepted_per_position)
    assert result["acceptance_length"] == found.counters.acceptance_length
    assert f"acceptance length {found.counters.acceptance_length:.3f} over 6 prompts" in said.out


@pytest.mark.usefixtures("tf32")
def test_it_is_measured_in_full_float32_and_says_so(command):
    _, result, _ = command("--tokens", 2)
    assert result["numerics"] == {"threads": 1, "tf32": False, "matmul_precision": "highest", "deterministic": False}


def test_untrained_is_measured_in_its_place(command, pair, prompts):
    _, result, said = command("--tokens", 9, "--untrained", "--seed", 5, "--speculative-tokens", 2)
    limits = Limits(9, end_tokens(pair.judge))
    expected = evaluate(pair.judge, drafter_of(untrained(pair.draft, 5)), prompts, limits, 2).counters
    assert result["accepted_per_position"] == list(expected.accepted_per_position)
    assert (result["untrained"], result["drafts"]) == (True, expected.drafts)
    assert "untrained" in said.out


def test_other_tokens_than_plain_decodings_are_exit_code_1(command, monkeypatch):
    def different(*words):
        found = evaluate(*words)
        found.plain[2].tokens[4] = 60
        return found

    monkeypatch.setattr("ports.evaluate.measure.evaluate", different)
    code, result, said = command("--tokens", 5)
    assert (code, result["lossless"]) == (1, False)
    (found,) = result["differences"]
    assert (found["prompt"], found["place"], found["plain"]) == (2, 4, 60)
    words = f"prompt 2, token 4: 60 without the draft, {found['drafted']} with it"
    assert words in said.out.replace("\n", " ")


def test_bfloat16_runs_both_models(command):
    _, result, _ = command("--tokens", 6, "--dtype", "bfloat16")
    assert result["drafts"] > 0


def test_long_prompts_are_left_out_and_counted(command, pair):
    config = pair.verifier / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 18}))
    code, result, said = command("--tokens", 6)
    assert (code, result["prompts"], result["left_out"]) == (0, 4, 2)
    assert "2 prompts left out" in said.out
    code, _, said = command("--tokens", 14)
    assert code == 2
    assert "found 3 tokens and more, expected at most 1 tokens" in said.err


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--prompts", "none.txt"), "--prompts"),
        (("--verifier", "nowhere/at-all"), "basepath"),
        (("--device", "abacus"), "--device"),
        (("--tokens", 5000), "--tokens"),
    ],
)
def test_bad_input_is_exit_code_2(command, words, field):
    code, result, said = command(*words)
    assert (code, result) == (2, {})
    last = said.err.strip().split("\n")[-1]
    assert "error: " in last
    assert f": {field}: found" in last


def test_weights_that_are_no_numbers_are_exit_code_2(command, pair):
    file = pair.directory / "model.safetensors"
    save_file(
        {name: value / 0 if value.is_floating_point() else value for name, value in load_file(file).items()}, file
    )
    code, result, said = command("--tokens", 5)
    assert (code, result) == (2, {})
    assert "model.safetensors: " in said.err


def test_every_file_has_its_row(command, tmp_path, prompts):
    second = tmp_path / "second.jsonl"
    second.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts[:2]))
    _, alone, _ = command("--tokens", 7)
    _, result, said = command("--tokens", 7, "--prompts", second)
    rows = result["files"]
    assert [(row["file"], row["prompts"]) for row in rows] == [(str(tmp_path / "prompts.jsonl"), 6), (str(second), 2)]
    assert rows[0]["accepted_per_position"] == alone["accepted_per_position"]
    for name in ("prompts", "tokens", "drafts", "proposed", "accepted"):
        assert result[name] == rows[0][name] + rows[1][name]
    assert f"{rows[1]['acceptance_length']:.3f}" in said.out
