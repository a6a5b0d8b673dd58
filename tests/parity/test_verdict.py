"""What a report amounts to: counts by what was held against what, one line, an exit code; what follows from what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.verdict import Against, Report, Row, Status, explained

PASSED, FAILED, BLOCKED, ABSENT = Status.PASSED, Status.FAILED, Status.BLOCKED, Status.NOT_APPLICABLE


def row(
    status: Status = PASSED, run: str = "port", against: Against = Against.PROTOTYPE, check: str = "forward"
) -> Row:
    return Row(check, "case", run, "logits", "t", 0.5, 1.0, status, against=against)


@pytest.mark.parametrize(
    ("rows", "line", "code"),
    [
        ([], "FAIL: Nothing was compared, so nothing was shown", 1),
        ([row(ABSENT)], "FAIL: Nothing was compared, so nothing was shown; port: 1 check not applicable", 1),
        ([row()], "PASS: port against prototype 1 of 1", 0),
        ([row(), row(FAILED)], "FAIL: port against prototype 1 of 2", 1),
        ([row(), row(BLOCKED)], "FAIL: port against prototype 1 of 2", 1),
        ([row(), row(ABSENT), row(ABSENT)], "PASS: port against prototype 1 of 1; 2 checks not applicable", 0),
        (
            [
                row(run="reference"),
                row(against=Against.ITSELF),
                row(against=Against.LIBRARY),
                row(against=Against.REFERENCE),
                row(),
                row(ABSENT),
                row(run="adapter"),
            ],
            "PASS: port against prototype 1 of 1; reference 1 of 1; library 1 of 1; itself 1 of 1; "
            "1 check not applicable; reference against prototype 1 of 1; adapter against prototype 1 of 1",
            0,
        ),
        (
            [row(), row(FAILED, "reference", Against.LIBRARY)],
            "FAIL: port against prototype 1 of 1; reference against library 0 of 1",
            1,
        ),
    ],
)
def test_the_verdict(rows: list[Row], line: str, code: int) -> None:
    report = Report(rows=rows)
    assert (report.verdict_line(), report.exit_code, report.passed) == (line, code, code == 0)


ROWS = st.builds(
    row, st.sampled_from(Status), st.sampled_from(["port", "reference", "adapter"]), st.sampled_from(Against)
)


@given(st.lists(ROWS, max_size=30))
def test_every_row_is_counted_once(rows: list[Row]) -> None:
    counts = Report(rows=rows).counts()
    told = sum(total for _, total in counts.compared.values()) + sum(counts.not_applicable.values())
    assert told == len(rows)
    assert sum(passed for passed, _ in counts.compared.values()) == sum(each.passed for each in rows)
    assert counts.passed == (bool(counts.compared) and not any(each.status in (FAILED, BLOCKED) for each in rows))


@given(st.lists(ROWS, max_size=10), st.randoms())
def test_the_order_of_the_rows_changes_no_number(rows: list[Row], source: object) -> None:
    mixed = list(rows)
    source.shuffle(mixed)  # type: ignore[attr-defined]
    assert Report(rows=mixed).counts() == Report(rows=rows).counts()


@pytest.mark.parametrize(
    ("failed", "statuses"),
    [
        ((), {"batches": PASSED, "forward": PASSED, "loss": PASSED, "curve": PASSED}),
        (("forward",), {"batches": PASSED, "forward": FAILED, "loss": PASSED, "curve": PASSED}),
        (("forward", "curve"), {"batches": PASSED, "forward": FAILED, "loss": PASSED, "curve": BLOCKED}),
        (("batches", "curve"), {"batches": FAILED, "forward": PASSED, "loss": PASSED, "curve": BLOCKED}),
        (("curve",), {"batches": PASSED, "forward": PASSED, "loss": PASSED, "curve": FAILED}),
    ],
)
def test_what_follows_from_an_earlier_failure_is_blocked(failed: tuple[str, ...], statuses: dict[str, Status]) -> None:
    follows = {"forward": ("batches",), "loss": ("forward",), "curve": ("loss",)}
    rows = [row(FAILED if check in failed else PASSED, check=check) for check in statuses]
    found = explained([*rows, row(ABSENT, check="curve")], follows)
    assert {each.check: each.status for each in found[:-1]} == statuses
    assert found[-1].status is ABSENT
    assert all(each.detail.startswith("follows from ") == (each.status is BLOCKED) for each in found)


@pytest.mark.parametrize(
    ("measured", "allowed", "ratio"),
    [
        (1.0, 2.0, 0.5),
        (0.0, 0.0, 0.0),
        (1e-9, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (-3.0, 1.0, 3.0),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_the_ratio_is_measured_over_allowed(measured: float | None, allowed: float | None, ratio: float | None) -> None:
    assert replace(row(), measured=measured, allowed=allowed).ratio == ratio
    assert math.isnan(replace(row(), measured=math.nan).ratio or 0)
