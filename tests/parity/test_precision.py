"""Half precision: errors against float64, and how two of them compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import Options, Pair, View, run_pair
from parity.side import TraceSide
from parity.trace import Point, Trace
from parity.verdict import Row

LOGITS, TARGET = "mb0.step0.logits", "mb0.target_p"
FC, NORM, BIAS = "mb0.grad.fc.weight", "mb0.grad.norm.weight", "mb0.grad.fc.bias"
EXACT = {
    "mb0.batch.attention_mask": torch.tensor([[1, 1, 0]]),
    LOGITS: torch.full((1, 3, 4), 2.0),
    TARGET: torch.full((1, 3, 4), 0.25),
    "mb0.step0.loss": torch.tensor([3.0]),
    "mb0.step1.loss": torch.tensor([4.0]),
    FC: torch.ones(2, 2),
    NORM: torch.ones(2),
    BIAS: torch.ones(2),
    "after.fc.weight": torch.ones(2, 2),
    "after.norm.weight": torch.ones(2),
}
EXACT_LOSSES = torch.linspace(4.0, 3.0, 40, dtype=torch.float64)
NOISE = torch.linspace(-1, 1, 40, dtype=torch.float64).mul(50).sin() * 1e-3
Changes = dict[str, Tensor]
VIEWS = [View("mb*.logits", rows=lambda trace, name: trace.tensors["mb0.batch.attention_mask"].bool())]


def side(run: str, changes: Changes, losses: Any = (), norms: Any = ()) -> Trace:
    points = [Point(0, float(loss), (), None, 0.0, 0.0) for loss in losses]
    points = [replace(point, grad_norm=float(norm)) for point, norm in zip(points, norms)] or points
    return Trace(run, "one", "bf16ds", {**EXACT, **changes}, points, trained=("fc.weight", "norm.weight"))


def judged(prototype: Trace, port: Trace, losses: Any = (), gone: str = "", norms: Any = ()) -> dict[str, Row]:
    port.tensors.pop(gone, None)
    oracle = side("reference", {}, losses, norms)
    sides = TraceSide(prototype), TraceSide(port)
    pair = Pair("one", *sides, views=VIEWS, tables={"bf16ds": "prototype_bf16"}, oracle=lambda case: lambda: oracle)
    return {row.tensor: row for row in run_pair(pair, Options(checks=("precision",))).rows}


def off(name: str, by: float | Tensor) -> Changes:
    return {name: EXACT[name] + by}


def test_everything_that_was_rounded_is_judged() -> None:
    rows = judged(side("recorded", {}), side("port", {}))
    assert set(rows) == {LOGITS, TARGET, "mb0.losses", FC, "mb0.grad.vectors", "after"}
    assert all(row.passed and row.measured == 0 for row in rows.values())


PADDED = torch.zeros(1, 3, 4).index_fill(1, torch.tensor([2]), 1e3)


@pytest.mark.parametrize(
    ("prototype", "port", "judge", "measured"),
    [
        (off(LOGITS, 0.01), off(LOGITS, 0.005), LOGITS, 0.5),
        (off(LOGITS, 0.01), off(LOGITS, 0.014), LOGITS, 1.4),
        (off(LOGITS, 0.01), off(LOGITS, 0.016), LOGITS, 1.6),
        (off(LOGITS, 0.01), off(LOGITS, float("nan")), LOGITS, float("nan")),
        (off(LOGITS, 0.01), off(LOGITS, PADDED), LOGITS, 0.0),
        ({}, off(TARGET, 2e-7), TARGET, 0.8),
        ({}, off(TARGET, 5e-7), TARGET, 2.0),
        (off(TARGET, 0.01), off(TARGET, 0.012), TARGET, 1.2),
        ({}, off(FC, 1e-6), FC, float("inf")),
        (off(FC, torch.tensor([[0.3, 0.0], [0.0, 0.4]])), off(FC, 0.25), FC, 1.0),
        ({}, off("mb0.step0.loss", 0.01), "mb0.losses", 1.0),
        ({}, off("mb0.step1.loss", 0.05), "mb0.losses", 5.1),
        (off(NORM, 0.001), off(BIAS, 0.001), "mb0.grad.vectors", 1.0),
        (off(NORM, 0.001), off(BIAS, 0.002), "mb0.grad.vectors", 2.0),
        (off("after.fc.weight", 0.001), off("after.norm.weight", 0.001), "after", 0.7),
        (off("after.norm.weight", 0.001), off("after.fc.weight", 0.002), "after", 2.8),
    ],
)
def test_half_as_much_again_is_allowed(prototype: Changes, port: Changes, judge: str, measured: float) -> None:
    row = judged(side("recorded", prototype), side("port", port))[judge]
    assert row.measured == pytest.approx(measured, abs=0.1, nan_ok=True)
    assert row.passed is (measured <= 1.5)


@pytest.mark.parametrize(
    ("gone", "judge"),
    [(LOGITS, LOGITS), (TARGET, TARGET), (FC, FC), (NORM, "mb0.grad.vectors"), ("after.norm.weight", "after")],
)
def test_what_the_port_lacks_fails(gone: str, judge: str) -> None:
    row = judged(side("recorded", {}), side("port", {}), gone=gone)[judge]
    assert not row.passed
    assert "missing on the port's side" in row.detail


PARTS = [f"loss, part {number} of 4" for number in range(1, 5)]
LATE = torch.where(torch.arange(40) >= 30, NOISE + 3e-3, NOISE)
FAULTS = {
    "as far as the prototype": (-NOISE, set()),
    "twice as far": (2 * NOISE, {*PARTS}),
    "wrong from step 30 on": (LATE, {PARTS[3], "loss, last part"}),
    "not a number": (torch.where(torch.arange(40) == 5, torch.nan, NOISE), {PARTS[0]}),
    "a step less": (NOISE[:-1], {"loss"}),
    "a short run": (NOISE[:0], set()),
}


@pytest.mark.parametrize(("error", "failed"), FAULTS.values(), ids=FAULTS)
def test_curves_are_judged_step_by_step(error: Tensor, failed: set[str]) -> None:
    steps = 9 if not len(error) else 40
    prototype = side("recorded", {}, (EXACT_LOSSES * (1 + NOISE))[:steps])
    port = side("port", {}, EXACT_LOSSES[: len(error)] * (1 + error))
    rows = {name: row for name, row in judged(prototype, port, EXACT_LOSSES[:steps]).items() if name.startswith("loss")}
    assert {name for name, row in rows.items() if not row.passed} == failed
    assert len(rows) == {9: 0, 40: 5}[steps] or failed == {"loss"}


NORMS = [f"grad_norm, part {number} of 4" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (2 * NOISE, set()),
        (5 * NOISE, {*NORMS}),
        (torch.where(torch.arange(40) < 10, -2 / 3, NOISE), {NORMS[0]}),
        (NOISE[:0], {"grad_norm"}),
    ],
    ids=["half a unit of bfloat16", "more", "a third at first", "none"],
)
def test_gradient_norms_are_judged_step_by_step(error: Tensor, failed: set[str]) -> None:
    """They are judged at the losses' steps; these are exact."""
    exact = EXACT_LOSSES * 5
    prototype = side("recorded", {}, EXACT_LOSSES, exact * (1 + NOISE))
    port = side("port", {}, EXACT_LOSSES, exact[: len(error)] * (1 + error))
    rows = judged(prototype, port, EXACT_LOSSES, norms=exact)
    assert {name for name, row in rows.items() if not row.passed} == failed
    assert {*NORMS} <= {*rows} or failed == {"grad_norm"}
