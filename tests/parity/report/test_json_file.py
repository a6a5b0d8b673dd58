from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parity.report import write_json
from parity.verdict import Against, Report, Row, Status


def written(report: Report, path: Path) -> dict[str, Any]:
    write_json(report, path / "report.json")
    document: dict[str, Any] = json.loads((path / "report.json").read_text(), parse_constant=pytest.fail)
    return document


def test_the_verdict_and_its_counts_come_before_the_rows(demo: Report, tmp_path: Path) -> None:
    document = written(demo, tmp_path)
    assert list(document)[:5] == ["format_version", "passed", "verdict", "counts", "rows"]
    assert document["passed"] is False
    assert document["verdict"] == demo.verdict_line()
    rows = [row for row in document["rows"] if row["run"] == "port" and row["status"] != "not applicable"]
    for against in Against:
        mine = [row for row in rows if row["against"] == against.value]
        counted = {"passed": sum(row["passed"] for row in mine), "total": len(mine)}
        assert document["counts"]["port"].get(against.value, {"passed": 0, "total": 0}) == counted
    assert document["counts"]["port"]["not applicable"] == 2
    assert document["counts"]["reference"] == {"not applicable": 0, "prototype": {"passed": 24, "total": 24}}


def test_rows_carry_every_field_and_none_passes_that_compares_nothing(demo: Report, tmp_path: Path) -> None:
    rows = written(demo, tmp_path)["rows"]
    names = "check case run quantity tensor measured allowed status detail hint against passed"
    assert {tuple(row) for row in rows} == {tuple(names.split())}
    assert {row["status"]: row["passed"] for row in rows} == {
        "passed": True,
        "failed": False,
        "blocked": False,
        "not applicable": None,
    }


def test_it_is_strict_json_with_floats_in_full(tmp_path: Path) -> None:
    values = (0.1 + 0.2, math.nan, math.inf, -math.inf)
    report = Report(rows=[Row("c", "k", "r", "q", "t", v, 1e-300, Status.FAILED) for v in values])
    report.environment = {"where": Path("a"), "x": {1: math.nan}, "flags": (True, None)}
    document = written(report, tmp_path)
    assert [row["measured"] for row in document["rows"]] == [0.30000000000000004, "NaN", "Infinity", "-Infinity"]
    assert document["rows"][0]["allowed"] == 1e-300
    assert document["environment"] == {"where": "a", "x": {"1": "NaN"}, "flags": [True, None]}


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for environment in ({"b": 1, "a": {"y": 1, "x": 2}}, {"a": {"x": 2, "y": 1}, "b": 1}):
        written(Report(environment=environment), tmp_path)
        texts.append((tmp_path / "report.json").read_bytes())
    assert texts[0] == texts[1]
