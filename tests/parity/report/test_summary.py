from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.report.summary import Group, blocked, count, listing, not_applicable, scaled, severity, short, write_whole
from parity.verdict import Report, Row, Status
from tests.parity.report.conftest import absent


def row(measured: float | None, status: Status = Status.PASSED) -> Row:
    return Row("check", "case", "run", "quantity", "t", measured, 1.0, status)


def test_the_worst_comes_last_and_neither_blocked_nor_absent_rows_are_the_worst() -> None:
    statuses = (Status.BLOCKED, Status.PASSED, Status.FAILED)
    ordered = [absent("a", "b", "c", "d"), row(9.0, Status.BLOCKED), row(0.1), row(0.9), row(5.0, Status.FAILED)]
    ordered.append(row(math.nan, Status.FAILED))
    assert sorted(ordered[3:] + ordered[:3], key=severity) == ordered
    groups = [Group(tuple(ordered[:n])) for n in (1, 2, 4, 6)]
    assert [group.worst for group in groups] == [None, None, row(0.9), ordered[-1]]
    assert [group.status for group in groups] == [Status.NOT_APPLICABLE, *statuses[:1], Status.BLOCKED, Status.FAILED]


def test_blocked_checks_name_the_first_failed_check_of_their_case_and_run(demo: Report) -> None:
    assert blocked(demo) == [
        "gradients: 3 in eagle3_fp32_k3, blocked by forward",
        "curve: 3 in eagle3_fp32_k3, blocked by forward",
    ]


def test_one_reason_for_many_checks_is_told_once(demo: Report) -> None:
    demo.rows.append(absent("converted", "another", "reference", "float32: compared directly"))
    demo.rows.append(replace(demo.rows[-1], detail="another reason"))
    assert not_applicable(demo) == [
        (
            "float32: compared directly",
            "precision and converted",
            "port and reference",
            "eagle3_fp32_k3, hass_bf16_k3 and another",
        ),
        ("another reason", "converted", "reference", "another"),
    ]


def test_numbers_in_words() -> None:
    values = (None, math.nan, -math.inf, 0.0, 1234.5, 1.5e-7, 2e9)
    assert [short(value) for value in values] == ["–", "NaN", "-inf", "0", "1,234", "1.5e-07", "2e+09"]
    assert [scaled(value) for value in (31.4e12, 12.0, math.nan)] == ["31.4 T", "12", "NaN"]
    assert [count(1, "row"), count(1234, "row"), count(2, "is", "are"), count(3)] == [
        "1 row",
        "1,234 rows",
        "2 are",
        "3",
    ]
    assert [listing(list(names)) for names in ("a", "abc", "abcdef")] == ["a", "a, b and c", "a, b, c and 3 more"]


def test_a_failed_write_leaves_the_old_file_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.json"
    write_whole(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"report\.json: file: found No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["a_file/report.html", "a_folder"])
def test_a_place_that_cannot_be_written_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(InputError, match=f"{place}: file: found .*, expected a place that can be written"):
        write_whole(tmp_path / place, "text")
