"""What is counted, what the command prints and writes of it, and its exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ports.evaluate.__main__
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec
from ports.errors import InputError
from ports.evaluate.decode import Answer, Limits
from ports.evaluate.drafter import drafter_of, untrained
from ports.evaluate.measure import Counters, Evaluation, ask, evaluate, measure, names, summary
from ports.evaluate.prompts import Prompt
from ports.evaluate.sampling import Sampling
from ports.evaluate.verifier import end_tokens
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.hass import train as hass
from ports.training.saving import save_draft
from tests.ports.conftest import settings_of


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
    words = f"prompt 2, turn 0, token 4: 60 without the draft, {found['drafted']} with it"
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
        (("--temperature", "nan"), "--temperature"),
        (("--plot", "picture.pdf"), "--plot"),
        (("--plot", "nowhere/picture.svg"), "--plot"),
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


def test_a_vocabulary_limits_what_a_hass_draft_proposes(command, pair, prompts, fixture):
    """The same draft by hand: its head says nothing for other tokens."""
    records = {"tmpdir": fixture / "data_hass", "basepath": str(fixture / "verifier"), "output": fixture}
    write_vocabulary(VocabularySettings(**records, draft_vocab_size=31))
    code, result, said = command("--tokens", 9, "--ignore-eos", "--vocabulary", fixture)
    if pair.draft.config.speculators_model_type == "eagle3":
        assert (code, result) == (2, {})
        assert "--vocabulary: found a draft of type eagle3, expected hass" in said.err
        return
    drafter, others = pair.drafter, ~torch.from_numpy(np.load(fixture / "t2d.npy"))
    logits = drafter.logits
    drafter.logits = lambda hidden: logits(hidden).masked_fill(others, -torch.inf)
    limited, whole = (evaluate(pair.judge, each, prompts, Limits(9), 3).counters for each in (drafter, pair.drafter))
    assert (code, result["draft_vocab_size"]) == (0, 31)
    assert result["accepted_per_position"] == list(limited.accepted_per_position) != list(whole.accepted_per_position)


def test_drawn_answers_are_counted_and_not_compared(command, pair, prompts, cpu):
    code, result, said = command("--tokens", 9, "--ignore-eos", "--temperature", 0.8, "--seed", 4)
    found = evaluate(pair.judge, pair.drafter, prompts, Limits(9), 3, 8, Sampling(0.8, 4, cpu))
    assert (code, result["lossless"], result["differences"]) == (0, None, [])
    assert (result["temperature"], result["seed"]) == (0.8, 4)
    assert result["accepted_per_position"] == list(found.counters.accepted_per_position)
    assert "tokens not compared with plain decoding: drawn ones differ" in said.out.replace("\n", " ")


@pytest.mark.parametrize(("ending", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_plot_is_drawn_the_same_each_time(command, tmp_path, ending, start):
    pictures = [tmp_path / f"{number}{ending}" for number in range(2)]
    for picture in pictures:
        assert command("--tokens", 5, "--plot", picture)[0] == 0
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert first.startswith(start)


def test_rows_are_named_by_benchmark():
    files = [Path("a/gsm8k/question.jsonl"), Path("mine.txt"), Path("b/mt_bench/question.jsonl"), Path("old/mine.txt")]
    assert names(files) == ["gsm8k", "mine.txt", "mt_bench", "old/mine.txt"]


def test_a_later_turn_is_asked_after_its_answer_where_it_fits():
    """Answers count the tokens asked; the second file's second turns are too long, so that a third is never asked, and
    refused by the chat template."""
    short = Prompt([1], lambda answer: Prompt([1, *answer, 2]))
    long = Prompt([3, 4], lambda answer: Prompt([5] * 9, lambda answer: pytest.fail("it is not asked")))
    refused = Prompt([6], lambda answer: refuse(answer))
    asked = []

    def refuse(answer):
        raise InputError("question.jsonl", "line 3", "roles must alternate", "a conversation")

    def answer(texts):
        asked.append(texts)
        return Evaluation(1, [Answer([len(text)], [1]) for text in texts], None)

    turns = ask([[short], [long, refused]], 8, answer)
    assert asked == [[[1], [3, 4], [6]], [[1, 1, 2]]]
    found = [(turn.file, turn.entry, turn.turn, turn.answer and turn.answer.tokens) for turn in turns]
    assert found == [
        *[(0, 0, 0, [1]), (0, 0, 1, [3]), (1, 0, 0, [2]), (1, 0, 1, None)],
        *[(1, 1, 0, [1]), (1, 1, 1, None)],
    ]
    told = summary(turns, 1)
    reasons = {"too long for the verifier": 1, "roles must alternate, expected a conversation": 1}
    assert (told["prompts"], told["left_out"], told["left_out_reasons"]) == (4, 2, reasons)


def test_benchmarks_are_asked_turn_by_turn(tmp_path):
    """Of a verifier with a chat template: the second turn's prompt holds the answer to the first."""
    fixture = build_random_fixture(tmp_path / "chat", spec=VerifierSpec(num_hidden_layers=4), lengths=(9,))
    build_tokenizer(fixture / "verifier")
    chosen = settings_of(fixture, "hass", cpdir=tmp_path, forward_num_total=2)
    draft = save_draft(hass.build(chosen), tmp_path / "draft")
    turns = {"gsm8k": [["One?"], ["Two?"]], "mt_bench": [["Why?", "And?"], ["Who?", "Not asked"]]}
    files = [tmp_path / name / "question.jsonl" for name in turns]
    for file in files:
        file.parent.mkdir()
        file.write_text("".join(f"{json.dumps({'turns': each})}\n" for each in turns[file.parent.name]))
    found = measure(draft, files, tokens=6, ignore_eos=True)
    rows = [(row["name"], row["prompts"], row["tokens"]) for row in found["files"]]
    assert rows == [("gsm8k", 2, 12), ("mt_bench", 4, 24)]
    assert (found["prompts"], found["lossless"], found["left_out"]) == (6, True, 0)
    few = measure(draft, files, tokens=6, ignore_eos=True, limit=1)
    assert [row["prompts"] for row in few["files"]] == [1, 2]
