"""What is counted, what the command prints and writes of it, and its exit codes."""

import json
import os

import numpy as np
import pytest
import torch

from parity.fixtures.samples import build_random_fixture
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec
from ports.evaluate.acceptance import Counters, count, summary
from ports.evaluate.decode import Answer, Limits
from ports.evaluate.drafter import drafter_of, untrained
from ports.evaluate.measure import ask, evaluate, measure
from ports.evaluate.plot import Panel, draw, write_json
from ports.evaluate.prompts import Prompt
from ports.evaluate.sampling import Sampling
from ports.generate.conversations import ConversationError
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.hass import train as hass
from ports.progress import Work
from ports.training.saving import save_draft
from ports.verifier.tokenizer import end_tokens
from tests.ports.conftest import settings_of


def test_a_position_counts_proposals_accepted_at_least_that_far():
    found = Counters.of([0, 3, 1, 1, 0, 2], size=3)
    assert found == Counters(drafts=6, accepted_per_position=(4, 2, 1))
    assert found.acceptance_length == 1 + 7 / 6
    assert found.rate_per_position == [4 / 6, 2 / 6, 1 / 6]


@pytest.mark.parametrize(
    ("drafted", "found"), [([5, 6], None), ([5, 7], (1, 6, 7)), ([5], (1, 6, -1)), ([5, 6, 7], (2, -1, 7))]
)
def test_the_first_token_that_differs_is_reported(drafted, found):
    told = Answer(drafted, plain=[5, 6]).difference
    assert (told and tuple(told.values())[:3]) == found


def test_an_evaluation_shows_how_far_it_is_token_by_token(pair, prompts, monkeypatch):
    """And not once a batch, with a draft and without it."""
    shown = []

    class Shown(Work):
        def at(self, done, reached=None):
            super().at(done, reached)
            shown.append(self.reached / self.total)

    monkeypatch.setattr("ports.evaluate.measure.Work", Shown)
    evaluate(pair.judge, pair.drafter, prompts, Limits(11), 3, 4)
    assert shown == sorted(shown)
    assert shown[-1] == 1
    assert len(set(shown)) > 2 * len(prompts)


WAYS = [
    ("--ignore-eos",),
    ("--untrained", "--seed", 5, "--speculative-tokens", 2),
    ("--temperature", 0.8, "--seed", 4, "--ignore-eos"),
]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("words", WAYS, ids=lambda words: words[0])
def test_the_result_is_that_of_evaluating(command, pair, prompts, cpu, words):
    """Drawn answers are counted, and not compared."""
    fresh, drawn = "--untrained" in words, "--temperature" in words
    limits = Limits(11, end_tokens(pair.judge) if fresh else frozenset())
    drafter, size = drafter_of(untrained(pair.draft, 5)) if fresh else pair.drafter, 2 if fresh else 3
    answers = evaluate(pair.judge, drafter, prompts, limits, size, choice=Sampling(0.8, 4, cpu) if drawn else None)
    code, result, said = command("--max-new-tokens", 11, *words)
    found, tokens = count(answers, size), sum(len(answer.tokens) for answer in answers)
    assert (code, result["lossless"], result["differences"]) == (0, None if drawn else True, [])
    assert (result["prompts"], result["left_out"], result["tokens"]) == (6, 0, tokens)
    assert (result["speculative_tokens"], result["untrained"], result["drafts"]) == (size, fresh, found.drafts)
    assert (result["temperature"], result["seed"]) == (0.8 if drawn else 0, 5 if fresh else 4 if drawn else 0)
    assert result["accepted_per_position"] == list(found.accepted_per_position)
    assert result["acceptance_length"] == found.acceptance_length
    (row,), told = result["files"], result["intervals"]
    assert np.sum([each["accepted_per_position"] for each in row["by_prompt"]], 0).tolist() == list(
        found.accepted_per_position
    )
    assert sum(each["drafts"] for each in row["by_prompt"]) == found.drafts
    assert told["acceptance_length"]["value"] == result["acceptance_length"]
    assert (told["acceptance_length"]["low"] < result["acceptance_length"]) == (sum(found.accepted_per_position) > 0)
    assert result["acceptance_length"] == pytest.approx(1 + sum(each["value"] for each in told["rate_per_position"]))
    assert ("expected_length" in result) == ("by the distributions" in said.out) == drawn
    assert result["numerics"] == {"threads": 1, "tf32": False, "matmul_precision": "highest", "deterministic": False}
    assert f"acceptance length {found.acceptance_length:.3f} over 6 prompts" in said.out
    assert ("untrained" in said.out) == fresh
    assert ("tokens not compared with plain decoding" in said.out.replace("\n", " ")) == drawn


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--prompts", "none.txt"), "--prompts"),
        (("--verifier", "nowhere/at-all"), "verifier"),
        (("--max-new-tokens", 5000), "--max-new-tokens"),
        (("--max-new-tokens", 507), "prompts"),
        (("--temperature", "nan"), "--temperature"),
        (("--temperature", 0.001), "--temperature"),
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


def test_a_vocabulary_limits_what_a_hass_draft_proposes(command, pair, prompts, fixture):
    """The same draft by hand: its head says nothing for other tokens."""
    records = {"tmpdir": fixture / "data_hass", "basepath": str(fixture / "verifier"), "output": fixture}
    write_vocabulary(VocabularySettings(**records, draft_vocab_size=31))
    code, result, said = command("--max-new-tokens", 9, "--ignore-eos", "--vocabulary", fixture)
    if pair.draft.config.speculators_model_type == "eagle3":
        assert (code, result) == (2, {})
        assert "--vocabulary: found a draft of type eagle3, expected hass" in said.err
        return
    drafter, others = pair.drafter, ~torch.from_numpy(np.load(fixture / "t2d.npy"))
    logits = drafter.logits
    drafter.logits = lambda hidden: logits(hidden).masked_fill(others, -torch.inf)
    drafters = drafter, pair.drafter
    limited, whole = (count(evaluate(pair.judge, each, prompts, Limits(9), 3), 3) for each in drafters)
    assert (code, result["draft_vocab_size"]) == (0, 31)
    assert result["accepted_per_position"] == list(limited.accepted_per_position) != list(whole.accepted_per_position)


def test_plots_are_the_same_each_time_and_a_result_is_written_whole_or_not_at_all(command, tmp_path, monkeypatch):
    """A picture that cannot be drawn takes no result with it; a name with two dollars is no formula."""
    pictures = [tmp_path / name for name in ("0.svg", "1.svg", "2.png")]
    for picture, dtype in zip(pictures, ("auto", "auto", "bfloat16")):
        assert command("--max-new-tokens", 5, "--plot", picture, "--dtype", dtype)[1]["drafts"] > 0
    first, second, other = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert (first[:5], other[:4]) == (b"<?xml", b"\x89PNG")
    before = (tmp_path / "result.json").read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", lambda source, target: os.stat("/a broken disk"))
        code, _, said = command("--max-new-tokens", 2)
    assert (code, (tmp_path / "result.json").read_bytes()) == (2, before)
    assert "result.json: file: found [Errno 2] No such file or directory: '/a broken disk'" in said.err
    assert [path.name for path in tmp_path.glob("*result.json*")] == ["result.json"]
    (tmp_path / "result.json").unlink()
    with monkeypatch.context() as broken:
        broken.setattr("ports.evaluate.measure.draw", lambda *_, **options: os.stat("/a full disk"))
        assert command("--max-new-tokens", 2, "--plot", tmp_path / "3.svg")[0] == 2
    assert (tmp_path / "result.json").exists()
    draw(tmp_path / "4.svg", Panel([1], {r"$\x$.jsonl": [0.5]}, {}))


def test_a_result_goes_where_a_rename_would_not_reach(tmp_path):
    """A link stays one, as /dev/stdout is, and a FIFO."""
    target, link, fifo = tmp_path / "target", tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(target)
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for file in (link, fifo):
        write_json(file, {"a": 1})
    assert link.is_symlink()
    assert target.read_bytes() == os.read(reader, 100) == b'{\n "a": 1\n}\n'
    os.close(reader)


def test_a_later_turn_is_asked_after_its_answer_where_it_fits():
    """Answers count the tokens asked; second turns of the second file are too long, so that no third is asked, and
    refused by the chat template."""

    def refuse(answer):
        raise ConversationError("roles must alternate")

    short = Prompt([1], lambda answer: Prompt([1, *answer, 2]))
    long = Prompt([3, 4], lambda answer: Prompt([5] * 9, lambda answer: pytest.fail("it is not asked")))
    turns = ask([[short], [long, Prompt([6], refuse)]], 8, lambda texts: [Answer([len(text)]) for text in texts])
    found = [(turn.file, turn.entry, turn.turn, turn.answer and turn.answer.tokens[0]) for turn in turns]
    assert found[:4] == [(0, 0, 0, 1), (0, 0, 1, 3), (1, 0, 0, 2), (1, 0, 1, None)]
    assert found[4:] == [(1, 1, 0, 1), (1, 1, 1, None)]
    told = summary(turns, 1)
    reasons = {"too long for the verifier": 1, "roles must alternate": 1}
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
    found = measure(draft, files, max_new_tokens=6, ignore_eos=True)
    rows = [(row["name"], row["prompts"], row["tokens"]) for row in found["files"]]
    assert rows == [("gsm8k", 2, 12), ("mt_bench", 4, 24)]
    assert (found["prompts"], found["lossless"], found["left_out"]) == (6, True, 0)
    assert [[each["prompt"] for each in row["by_prompt"]] for row in found["files"]] == [[0, 1], [0, 1]]
    few = measure(draft, files, max_new_tokens=6, ignore_eos=True, limit=1, contexts=True)
    assert [row["prompts"] for row in few["files"]] == [1, 2]
    (context,) = few["files"][1]["contexts"].items()
    assert context == ("under 512", few["files"][1]["intervals"]["acceptance_length"])
    assert context[1]["low"] is None  # two turns, one dialogue
