"""Which of two drafts is better: right, or silent; and what two results must have in common."""

import json
from pathlib import Path

import numpy as np
import pytest

from ports.evaluate.acceptance import Counted, figures, in_json
from ports.evaluate.compare import verdict
from tests.commands import main_of

main = main_of("compare")

COUNTS = json.loads(Path(__file__).with_name("counts.json").read_text())
"""Of every prompt proposals and what was accepted of them by position; see counts.py."""

REAL = COUNTS["seeds"]


def counted(place, row):
    return Counted(prompt=place, key=f"{place}", tokens=sum(row), drafts=row[0], accepted_per_position=tuple(row[1:]))


def drawn(draws, prompts):
    """Of a draft and itself: each prompt twice, under two seeds."""
    seeds = np.argsort(draws.random((prompts, len(REAL))), axis=1)[:, :2]
    places = draws.integers(len(REAL[0]), size=prompts)
    return [
        tuple(counted(number, REAL[seed][place]) for seed in pair)
        for number, (place, pair) in enumerate(zip(places, seeds))
    ]


def test_a_draft_is_seldom_better_than_itself():
    """In at most 5 % of 200; and never mistaken for the same within what 16 prompts cannot show."""
    draws = np.random.default_rng(0)
    words = [verdict(drawn(draws, 64), 0.03).word for _ in range(200)]
    assert words.count("better") <= 10
    assert words.count("worse") <= 10
    few = [verdict(drawn(draws, 16), 0.001) for _ in range(50)]
    assert not any(each.same for each in few)


def test_a_draft_that_loses_its_last_positions_is_worse():
    pairs = drawn(np.random.default_rng(1), 64)
    less = [
        (one, other.model_copy(update={"accepted_per_position": other.accepted_per_position[:1]}))
        for one, other in pairs
    ]
    assert verdict(less, 0.03).word == "better"
    assert verdict([pair[::-1] for pair in less], 0.03).word == "worse"


def test_of_a_draft_after_two_passes_and_after_five_it_is_said_which_or_how_many_prompts_tell():
    """64 real prompts cannot tell; as many as they ask for do, in four of five samples about, and so do all 256."""
    later, earlier = ([counted(*each) for each in enumerate(COUNTS[f"after {n} passes"])] for n in (5, 2))
    pairs = list(zip(later, earlier))
    every, few = verdict(pairs, 0.03), verdict(pairs[:64], 0.03)
    assert (every.word, few.word) == ("better", "cannot tell")
    margin = every.difference.value / every.b
    needed, draws = verdict(pairs, margin).needed, np.random.default_rng(2)
    assert 64 < needed < 300
    samples = [[pairs[place] for place in draws.integers(len(pairs), size=needed)] for _ in range(100)]
    assert 65 <= sum(verdict(sample, margin).word == "better" for sample in samples) <= 95


def result(tmp_path, name, rows, **changes):
    entries = [counted(*each) for each in enumerate(rows)]
    told = in_json(figures(entries, 3))
    row = {
        "name": "held_out.jsonl",
        "acceptance_length": told["acceptance_length"]["value"],
        "rate_per_position": [each["value"] for each in told["rate_per_position"]],
        "by_prompt": [each.model_dump(mode="json", exclude_none=True) for each in entries],
    }
    content = {"speculative_tokens": 3, "temperature": 0.0, "length": 48, "files": [row | changes.pop("row", {})]}
    file = tmp_path / name
    file.write_text(json.dumps(content | changes))
    return file


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [((), 0, "cannot tell: about"), (("--margin", 0.9), 0, "the same within 90%"), (("--margin", 0.0001), 1, "cannot")],
)
def test_two_results_are_compared(run_app, tmp_path, capsys, words, code, said):
    files = [result(tmp_path, f"{seed}.json", REAL[seed]) for seed in (0, 1)]
    assert run_app(main, *files, "--json", tmp_path / "told.json", *words) == code
    assert said in " ".join(capsys.readouterr().out.replace("│", " ").split())
    told = json.loads((tmp_path / "told.json").read_text())["rows"]["held_out.jsonl"]
    assert told["difference"]["value"] == pytest.approx(told["a"] - told["b"])


def test_a_worse_draft_is_exit_code_1(run_app, tmp_path):
    none = [[row[0], 0, 0, 0] for row in REAL[0]]
    files = [result(tmp_path, "a.json", none), result(tmp_path, "b.json", REAL[1])]
    assert run_app(main, *files) == 1
    assert run_app(main, *files[::-1]) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"length": 4}, "length"),
        ({"files": [{}]}, "files"),
        ({"files": []}, "files"),
        ({"row": {"acceptance_length": 3.0}}, "held_out.jsonl: acceptance_length"),
        ({"row": {"rate_per_position": [0.1]}}, "held_out.jsonl: acceptance_length"),
        ({"row": {"by_prompt": [{"prompt": 0}]}}, "files"),
    ],
)
def test_results_that_cannot_be_compared(run_app, tmp_path, capfd, changes, field):
    files = [result(tmp_path, "a.json", REAL[0]), result(tmp_path, "b.json", REAL[1], **changes)]
    assert run_app(main, *files) == 2
    assert f"b.json: {field}: found" in capfd.readouterr().err


def test_other_prompts_and_no_prompts(run_app, tmp_path, capfd):
    one, other = (result(tmp_path, f"{seed}.json", REAL[seed]) for seed in (0, 1))
    content = json.loads(other.read_text())
    content["files"][0]["by_prompt"][3]["key"] = "another"
    other.write_text(json.dumps(content))
    assert run_app(main, one, other) == 2
    assert run_app(main, one, tmp_path) == 2
    told = capfd.readouterr().err
    assert "another prompt at 3, expected the prompts of" in told
    assert "--prompts: found none" in told
