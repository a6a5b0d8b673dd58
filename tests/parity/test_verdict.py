"""What a report amounts to: counts by what was held against what, one line; what follows from what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from parity.verdict import Against, GradientFlow, Report, Row, Status, explained

PASSED, FAILED, BLOCKED, ABSENT = Status.PASSED, Status.FAILED, Status.BLOCKED, Status.NOT_APPLICABLE


def row(
    status: Status = PASSED, run: str = "port", against: Against = Against.PROTOTYPE, check: str = "forward"
) -> Row:
    return Row(check, "case", run, "logits", "t", 0.5, 1.0, status, against=against)


OTHERS = [row(run="reference"), *(row(against=one) for one in Against), row(ABSENT), row(run="adapter")]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "FAIL: Nothing was compared, so nothing was shown"),
        ([row(ABSENT)], "FAIL: Nothing was compared, so nothing was shown; port: 1 check not applicable"),
        ([row()], "PASS: port against prototype 1 of 1"),
        ([row(), row(FAILED)], "FAIL: port against prototype 1 of 2"),
        ([row(), row(BLOCKED)], "FAIL: port against prototype 1 of 2"),
        ([row(), row(ABSENT), row(ABSENT)], "PASS: port against prototype 1 of 1; 2 checks not applicable"),
        (
            OTHERS,
            "PASS: port against prototype 1 of 1; reference 1 of 1; library 1 of 1; itself 1 of 1; "
            "1 check not applicable; reference against prototype 1 of 1; adapter against prototype 1 of 1",
        ),
        (
            [row(), row(FAILED, "reference", Against.LIBRARY)],
            "FAIL: port against prototype 1 of 1; reference against library 0 of 1",
        ),
    ],
)
def test_the_verdict(rows: list[Row], line: str) -> None:
    report = Report(rows=rows)
    assert (report.verdict_line(), report.passed) == (line, line.startswith("PASS"))


@pytest.mark.parametrize(
    ("failed", "blocked"),
    [
        ((), ()),
        (("forward",), ()),
        (("forward", "curve"), ("curve",)),
        (("batches", "curve"), ("curve",)),
        (("batches", "forward", "curve"), ("forward", "curve")),
        (("curve",), ()),
    ],
)
def test_what_follows_from_an_earlier_failure_is_blocked(failed: tuple[str, ...], blocked: tuple[str, ...]) -> None:
    follows = {"batches": (), "forward": ("batches",), "loss": ("forward",), "curve": ("loss",)}
    rows = [row(FAILED if check in failed else PASSED, check=check) for check in follows]
    *found, absent = explained([*rows, row(ABSENT, check="curve")], follows)
    assert tuple(each.check for each in found if each.status is BLOCKED) == blocked
    assert tuple(each.check for each in found if not each.passed) == failed
    assert absent.status is ABSENT
    assert {each.detail for each in found if each.status is BLOCKED} <= {f"follows from {''.join(failed[:1])}. "}


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
        (math.nan, 1.0, math.nan),
    ],
)
def test_the_ratio_is_measured_over_allowed(measured: float | None, allowed: float | None, ratio: float | None) -> None:
    found = replace(row(), measured=measured, allowed=allowed).ratio
    assert found == pytest.approx(ratio, nan_ok=True)


@pytest.mark.parametrize(
    ("trainable", "grad_max", "moved", "fault"),
    [
        (True, 0.1, 0.1, ""),
        (True, None, 0.1, "no gradient"),
        (True, 0.0, 0.1, "zero everywhere"),
        (True, math.nan, 0.1, "gradient is nan"),
        *((True, 0.1, moved, "did not move") for moved in (0.0, math.nan)),
        (False, None, 0.0, ""),
        (False, None, 0.1, "frozen, but moved by 0.1"),
        (False, 0.5, 0.0, "frozen, but has a gradient of up to 0.5"),
    ],
)
def test_what_is_wrong_with_a_parameter(trainable: bool, grad_max: float | None, moved: float, fault: str) -> None:
    found = GradientFlow("case", "port", "w", trainable, grad_max, moved).fault
    assert (fault in found, bool(found)) == (True, bool(fault))
