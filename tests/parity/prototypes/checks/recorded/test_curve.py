"""Curves, hits and printed lines: what counts as equal, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from parity.prototypes.checks.recorded.curve import check_curve, check_hits

from parity.prototypes.case import Case
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.recorded import load_recorded
from parity.trace import Trace


def evidence(case: Case, **changes: Any) -> Evidence:
    """A recording against itself, the found side changed."""
    expected = load_recorded(case)
    return Evidence(case, expected, replace(expected, run="port", **changes), lambda: Trace("reference", "", "fp32"))


def failed(rows: list[Any]) -> set[str]:
    return {row.tensor for row in rows if not row.passed}


def change_point(case: Case, **changes: Any) -> list[Any]:
    curve = list(load_recorded(case).curve)
    curve[7] = replace(curve[7], **changes)
    return curve


def test_a_recording_agrees_with_itself(case: Case) -> None:
    rows = [*check_curve(evidence(case)), *check_hits(evidence(case))]
    assert failed(rows) == set()
    assert {"lr_used", "lr_after", "loss", "grad_norm", "rows", "hits", "top_1", "top_3", "numbers"} <= {
        row.tensor for row in rows
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": 1.0}, {"loss"}),
        ({"loss": float("nan")}, {"loss"}),
        ({"lr_used": 0.0}, {"lr_used"}),
        ({"lr_after": 0.0}, {"lr_after"}),
        ({"grad_norm": None}, {"grad_norm"}),
        ({"correct": 10**6}, {"hits"}),
        ({"rows": 1}, {"rows"}),
        ({"top": (0, 0, 10**6)}, {"top_3"}),
    ],
)
def test_one_point_off_is_named(changes: dict[str, Any], named: set[str], case: Case) -> None:
    if "top" in changes:
        changes = {"top": (*load_recorded(case).curve[7].top[:2], 10**6)}
    found = evidence(case, curve=change_point(case, **changes))
    assert failed([*check_curve(found), *check_hits(found)]) == named


def test_a_curve_cut_short_fails_everywhere(case: Case) -> None:
    found = evidence(case, curve=load_recorded(case).curve[:-1])
    assert {"lr_used", "lr_after", "loss", "grad_norm"} <= failed(check_curve(found))


def change_print(case: Case, index: int, line: str) -> list[str]:
    lines = list(case.meta.prints)
    lines[index] = line
    return lines


@pytest.mark.parametrize("move", [-0.0001, 0.0001])
def test_the_last_printed_digit_may_fall_either_way(move: float, case: Case) -> None:
    loss = float(case.meta.prints[1].rpartition(" ")[2]) + move
    lines = change_print(case, 1, f"Epoch [1/4], Loss: {loss:.4f}")
    assert lines != case.meta.prints
    assert failed(check_hits(evidence(case, prints=lines))) == set()


@pytest.mark.parametrize(
    ("index", "line", "named"),
    [
        (1, "Epoch [1/4], Loss: 1.0000", "numbers"),
        (1, "Epoch [1/5], Loss: {1}", "numbers"),
        (1, "Epoch [1/4], Loss: nan", "lines"),
        (1, "Epoch 1, Loss: {1}", "lines"),
        (2, "Train Accuracy: 99.99%", "numbers"),
        (0, "training on 16 examples total", "numbers"),
    ],
)
def test_any_other_line_fails(index: int, line: str, named: str, case: Case) -> None:
    loss = case.meta.prints[1].rpartition(" ")[2]
    lines = change_print(case, index, line.replace("{1}", loss))
    assert failed(check_hits(evidence(case, prints=lines))) == {named}


@pytest.mark.parametrize("count", [0, 1, -1])
def test_missing_lines_fail(count: int, case: Case) -> None:
    assert failed(check_hits(evidence(case, prints=case.meta.prints[:count]))) == {"lines"}


def test_no_lines_on_either_side_is_nothing_compared(case: Case) -> None:
    both = evidence(case, prints=[])
    both.expected.prints = []
    assert failed(check_hits(both)) == {"numbers"}


def test_metrics_beyond_the_loss_are_compared_where_they_are_logged(cases: dict[str, Case]) -> None:
    case = cases["hass_fp32_k3"]
    wrong = evidence(case, curve=change_point(case, logged={"train/ploss": 0.0, "train/topkloss": 0.0}))
    assert failed(check_curve(wrong)) == {"train/ploss", "train/topkloss"}
    silent = evidence(case, curve=change_point(case, logged={}))
    assert failed(check_curve(silent)) == {"train/ploss", "train/topkloss"}
    both = evidence(case, curve=change_point(case, logged={}))
    both.expected.curve = both.found.curve
    assert failed(check_curve(both)) == set()


def test_in_bfloat16_only_rates_and_rows_are_compared(cases: dict[str, Case]) -> None:
    case = cases["eagle3_bf16ds_k3"]
    found = evidence(case, curve=change_point(case, loss=1.0))
    assert {row.tensor for row in check_curve(found)} == {"lr_used", "lr_after"}
    assert {row.tensor for row in check_hits(found)} == {"rows"}
    assert failed(check_curve(found)) == set()
