"""The page: rates from records, and no survivor without a reason."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mutation import explanations
from mutation.explanations import Explanation
from mutation.page import one_line, unused, write_page
from mutation.results import Results, append, read

LOOP, LOSS = "ports/training/loop.py", "ports/training/loss/objective.py"


def record(key, outcome, file=LOOP, line="a + b", **more):
    change = [f"-    {line}", f"+    {line.replace('+', '-')}"]
    return {
        "key": key,
        "file": file,
        "group": "loop",
        "line": 7,
        "column": 4,
        "operator": "ReplaceBinaryOperator_Add_Sub",
        "change": change,
        "outcome": outcome,
        **more,
    }


@pytest.fixture
def results():
    def module(group):
        return {"group": group, "possible": 9, "made": 4, "left_out": {"annotation": 3}}

    about = {
        "seed": 0,
        "a_place": 2,
        "sample": 0,
        "chosen": ["a", "b", "c", "d", "e", "not judged"],
        "modules": {LOOP: module("loop"), LOSS: module("objective")},
        "python": "3.11",
        "packages": {"torch": "2"},
        "suite_seconds": 12.5,
        "keyword": "",
        "cases": ["c"],
    }
    records = [
        record("a", "killed", check="forward", case="c"),
        record("b", "killed", check="run", case="c", exception="TypeError"),
        record("c", "survived", line="x + 1"),
        record("d", "no mutation"),
        record("e", "killed", LOSS, check="loss", case="c"),
    ]
    return Results(about, {each["key"]: each for each in records})


def test_a_survivor_without_a_reason_is_named(results):
    page, left = write_page(results, [])
    assert [each["key"] for each in left] == ["c"]
    assert "**Not explained** (1)" in page
    assert f"- {LOOP}:7 `x + 1` → `x - 1`" in page


def test_an_explained_survivor_stands_below_its_reason(results):
    page, left = write_page(results, [Explanation("nobody looks", "ports/*/loop.py", "x + 1", change="x - 1")])
    assert left == []
    assert "**nobody looks** (1)" in page
    assert "Not explained" not in page


def test_rates(results):
    page, _ = write_page(results, [])
    assert "| loop | 9 | 4 | 1 | 3 | 2 | 1 | 0 | 66.7 | 66.7 | 13.5 |" in page
    assert "| objective | 9 | 4 | 0 | 1 | 1 | 0 | 0 | 100.0 | 100.0 | 5.0 |" in page
    assert "| all | 18 | 8 | 1 | 4 | 3 | 1 | 0 | 75.0 | 75.0 | 24.9 |" in page
    assert f"| `{LOSS}` | 4 | 1 | 0 | 0 | 100.0 |" in page
    assert "| forward | 1 |" in page
    assert "| annotation | annotations and aliases of types: nothing evaluates them | 6 |" in page


def test_equivalent_survivors_are_told_apart(results):
    page, _ = write_page(results, [Explanation("the same sum", line="x + 1", equivalent=True)])
    assert "| all | 18 | 8 | 1 | 4 | 3 | 1 | 1 | 75.0 | 100.0 | 36.8 |" in page
    assert "**the same sum** (1)" in page


def test_reasons_fit_by_everything_they_say(results):
    survivor = results.records["c"]
    for wrong in ({"file": LOSS}, {"line": "y"}, {"operator": "AddNot"}, {"change": "x + 2"}):
        assert not Explanation("why", **wrong).fits(survivor)
    idle = Explanation("idle", file=LOSS)
    assert unused([results], [Explanation("all"), idle]) == [idle]


def test_fresh_mutants_have_a_rate_of_their_own(results):
    others = [record("f", "killed", check="loss"), record("g", "survived", line="y + 1"), record("h", "survived")]
    fresh = Results({**results.about, "chosen": ["f", "g", "h"]}, {each["key"]: each for each in others})
    entries = [Explanation("the same", line="y + 1", equivalent=True), Explanation("nobody looks", line="x + 1")]
    page, left = write_page(results, entries, fresh)
    assert "3 judged, 1 killed, 2 survived, 1 of them equivalent: 33.3 % killed, score 50.0 %, bound 2.5 %" in page
    assert [each["key"] for each in left] == ["h"]
    assert "no check was written for" not in write_page(results, entries)[0]


def test_a_reason_must_be_one(tmp_path):
    for entry in ({"file": LOOP}, {"why": "w", "lines": "x"}):
        file = tmp_path / "survivors.yaml"
        file.write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match="expected why"):
            explanations.load(file)
    assert all(entry.why for entry in explanations.load())


def test_results_come_back_and_the_latest_counts(results, tmp_path):
    file = tmp_path / "results.jsonl"
    for value in (results.about, *results.records.values(), {**results.records["c"], "outcome": "killed"}):
        append(file, value)
    with file.open("a") as stream:
        stream.write('{"key": "cut o')
    found = read(file)
    assert found.about == results.about
    assert found.records["c"]["outcome"] == "killed"
    assert len(found.records) == 5
    assert read(tmp_path / "none").records == {}


def test_what_the_page_does_not_show_can_go(results, tmp_path):
    from mutation.__main__ import app

    file = tmp_path / "results.jsonl"
    stale, outdated = record("gone", "killed"), {**results.records["c"], "outcome": "killed"}
    for value in ({**results.about, "seed": 9}, stale, outdated, results.about, *results.records.values()):
        append(file, value)
    page = write_page(read(file), [])
    done = CliRunner().invoke(app, ["compact", str(file)])
    assert done.output == "3 lines dropped\n"
    assert len(file.read_text().splitlines()) == 6
    assert write_page(read(file), []) == page
    assert list(tmp_path.iterdir()) == [file]


def test_the_command_fails_on_what_is_not_explained(results, tmp_path, monkeypatch):
    from mutation.__main__ import app

    file = tmp_path / "results.jsonl"
    for value in (results.about, *results.records.values()):
        append(file, value)
    for entries, code, said in (
        ([], 1, f"not explained: {one_line(results.records['c'])}"),
        ([Explanation("it does not matter")], 0, ""),
        ([Explanation("it does not matter"), Explanation("idle", file="none")], 1, "explains nothing"),
    ):
        monkeypatch.setattr("mutation.__main__.load", lambda entries=entries: entries)
        done = CliRunner().invoke(app, ["report", str(file), "--markdown", str(tmp_path / "page.md")])
        assert done.exit_code == code, done.output
        assert said in done.output
    assert (tmp_path / "page.md").read_text().startswith("# Mutation testing")
