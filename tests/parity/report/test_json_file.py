from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.errors import InputError
from parity.report import read_json, write_json
from parity.report.files import write_beside
from parity.verdict import Report, Row, Status

NAMES = st.text(max_size=20)
NUMBERS = st.none() | st.floats()
ROWS = st.builds(Row, NAMES, NAMES, NAMES, NAMES, NAMES, NUMBERS, NUMBERS, st.sampled_from(Status), NAMES, NAMES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "report.json"


def test_a_whole_report_comes_back(demo_report: Report, path: Path) -> None:
    write_json(demo_report, path)
    back = read_json(path)
    back.environment = demo_report.environment  # mappings come back sorted
    assert repr(back) == repr(demo_report)  # repr: NaN is not equal to itself


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=5))
def test_any_rows_come_back(rows: list[Row], path: Path) -> None:
    write_json(Report(rows=rows), path)
    assert repr(read_json(path).rows) == repr(rows)


def test_it_is_strict_json_with_floats_in_full(path: Path) -> None:
    values = (0.1 + 0.2, math.nan, math.inf, -math.inf)
    write_json(Report(rows=[Row("c", "k", "r", "q", "t", v, 1e-300, Status.FAILED) for v in values]), path)
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [row["measured"] for row in document["rows"]] == [0.30000000000000004, "NaN", "Infinity", "-Infinity"]
    assert document["rows"][0]["allowed"] == 1e-300


def test_rows_carry_every_field_in_a_fixed_order(demo_report: Report, path: Path) -> None:
    write_json(demo_report, path)
    document = json.loads(path.read_text())
    assert list(document)[:4] == ["format_version", "passed", "comparisons", "rows"]
    assert list(document["rows"][0]) == (
        ["check", "case", "run", "quantity", "tensor", "measured", "allowed", "status", "detail", "hint", "passed"]
    )
    assert document["passed"] is False
    assert document["comparisons"] == len(demo_report.rows)


def test_the_same_report_gives_the_same_bytes(path: Path) -> None:
    texts = []
    for environment in ({"b": 1, "a": {"y": 1, "x": 2}}, {"a": {"x": 2, "y": 1}, "b": 1}):
        write_json(Report(environment=environment), path)
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


def test_environment_may_hold_anything(path: Path) -> None:
    write_json(Report(environment={"where": Path("a"), "x": {1: math.nan}, "flags": (True, None)}), path)
    assert read_json(path).environment == {"where": "a", "x": {"1": "NaN"}, "flags": [True, None]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version: found 2, expected a version from 1 to 1"),
        ("format_version", None, "format_version: found nothing"),
        ("format_version", True, "format_version: found True"),
        ("rows", "x", "report.rows: found str, expected list"),
        ("rows", [{"check": "c"}], r"report.rows\[0\].allowed: found nothing, expected a value"),
        ("colour", "red", "report.colour: found 'red', expected no such field"),
        ("notes", [1], r"report.notes\[0\]: found int, expected str"),
        (
            "curves",
            [{"case": "a", "run": "b", "quantity": "loss", "values": ["x"]}],
            r"values\[0\]: found 'x', expected a n",
        ),
    ],
)
def test_a_wrong_file_is_named_with_what_was_found(field: str, value: object, message: str, path: Path) -> None:
    write_json(Report(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x80"])
def test_what_is_no_report_is_refused(text: str, path: Path) -> None:
    write_beside(path, "x")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"report\.json"):
        read_json(path)


def test_unknown_status_and_wrong_interval_are_refused(demo_report: Report, path: Path) -> None:
    write_json(demo_report, path)
    document = json.loads(path.read_text())
    document["rows"][0]["status"] = "maybe"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="found 'maybe', expected one of"):
        read_json(path)
    document["rows"], document["speeds"][0]["interval"] = [], [1.0]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="interval: found 1 entries, expected 2"):
        read_json(path)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beside(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_beside(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
