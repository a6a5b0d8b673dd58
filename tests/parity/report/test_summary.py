from __future__ import annotations

import math

import pytest

from parity.report.flow import flow_state
from parity.report.matrix import anchors, matrix
from parity.report.numbers import count, listing, scaled, short
from parity.report.sections import environment_groups
from parity.report.summary import Group, blockers, margin, verdict_line, worst_first
from parity.verdict import GradientFlow, Report, Row, Skip, Status


def row(measured: float | None, allowed: float | None = 1.0, status: Status = Status.PASSED, tensor: str = "t") -> Row:
    return Row("check", "case", "run", "quantity", tensor, measured, allowed, status)


@pytest.mark.parametrize(
    ("measured", "allowed", "ratio"),
    [(1.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1e-9, 0.0, math.inf), (math.inf, 1.0, math.inf), (-3.0, 1.0, 3.0)],
)
def test_margin(measured: float, allowed: float, ratio: float) -> None:
    assert margin(row(measured, allowed)) == ratio


def test_margin_of_what_has_no_numbers() -> None:
    assert margin(row(None)) is None
    assert margin(row(1.0, None)) is None
    assert math.isnan(margin(row(math.nan)) or 0)


def test_worst_first_puts_failures_then_nan_then_margins_then_blocked() -> None:
    rows = [
        row(9.0, status=Status.BLOCKED, tensor="blocked"),
        row(0.1, tensor="small"),
        row(0.9, tensor="large"),
        row(5.0, status=Status.FAILED, tensor="failed"),
        row(math.nan, status=Status.FAILED, tensor="nan"),
    ]
    assert [r.tensor for r in worst_first(rows)] == ["nan", "failed", "large", "small", "blocked"]


def test_blocked_rows_are_not_the_worst() -> None:
    group = Group((row(0.5), row(99.0, status=Status.BLOCKED)))
    assert group.worst == row(0.5)
    assert group.status is Status.BLOCKED
    assert Group((row(99.0, status=Status.BLOCKED),)).worst is None


def test_the_blocker_is_the_first_failed_check_of_its_case_and_run(demo_report: Report) -> None:
    assert blockers(demo_report) == {("eagle3_fp32_k5", "port"): "logits", ("hass_bf16_k3", "port"): "trajectory"}


def test_verdict_lines() -> None:
    assert verdict_line(Report(rows=[row(0.0)])).endswith("all measured errors are exactly 0")
    assert verdict_line(Report(rows=[row(None)])).endswith("none of them carries a number")
    assert verdict_line(Report(rows=[row(2.0, status=Status.FAILED)])) == "FAIL: 1 of 1 comparison failed"


def test_a_case_that_was_only_skipped_has_its_line() -> None:
    checks, lines = matrix(Report(skips=[Skip("throughput", "case", "no GPU", "get one")]))
    assert checks == ["throughput"]
    assert [(line.case, line.cells[0].word) for line in lines] == [("case", "skipped")]


def test_anchors_differ_where_names_only_differ_in_signs() -> None:
    assert len(set(anchors(["a b", "a-b", "a_b"]).values())) == 3


@pytest.mark.parametrize(
    ("trainable", "grad_max", "moved", "state"),
    [
        (True, 0.1, 0.1, "trains"),
        (True, None, 0.1, "dead"),
        (True, 0.0, 0.1, "dead"),
        (True, 0.1, 0.0, "dead"),
        (True, math.nan, 0.1, "dead"),
        (False, None, 0.0, "frozen"),
        (False, None, 0.1, "frozen but moved"),
    ],
)
def test_flow_states(trainable: bool, grad_max: float | None, moved: float, state: str) -> None:
    assert flow_state(GradientFlow("c", "r", "p", trainable, grad_max, moved)) == state


def test_numbers_in_words() -> None:
    values = (None, math.nan, -math.inf, 0.0, 1234.5, 1.5e-7, 2e9)
    assert [short(value) for value in values] == ["–", "NaN", "-inf", "0", "1,234", "1.5e-07", "2e+09"]
    assert [scaled(value) for value in (31.4e12, 12.0, math.nan)] == ["31.4 T", "12 ", "NaN"]
    assert [count(1, "row"), count(1234, "row"), count(2, "is", "are")] == ["1 row", "1,234 rows", "2 are"]
    assert listing(["a"]) == "a"
    assert listing(list("abc")) == "a, b and c"
    assert listing(list("abcdef")) == "a, b, c and 3 more"


def test_environment_is_grouped() -> None:
    groups = environment_groups({"threads": 1, "versions": {"torch": None, "deep": {"x": True}}, "empty": {}})
    assert groups == [("this run", [("threads", "1")]), ("versions", [("torch", "–"), ("deep.x", "yes")])]
