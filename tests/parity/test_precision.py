"""Half precision: errors against float64, and how two of them compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parity.compare import Subject
from parity.precision import distance_rows, error, tensor_rows
from parity.tolerances import tables
from parity.trace import Point, Trace
from parity.verdict import Row

SUBJECT, BF16 = Subject("precision", "one", "port"), tables()["prototype_bf16"]
TRAINED = ("fc.weight", "norm.weight")
EXACT = {
    "mb0.batch.attention_mask": torch.tensor([[1, 1, 0]]),
    "mb0.step0.logits": torch.full((1, 3, 4), 2.0),
    "mb0.step0.loss": torch.tensor([3.0]),
    "mb0.step1.loss": torch.tensor([4.0]),
    "mb0.grad.fc.weight": torch.ones(2, 2),
    "mb0.grad.norm.weight": torch.ones(2),
    "mb0.grad.fc.bias": torch.ones(2),
    "after.fc.weight": torch.ones(2, 2),
    "after.norm.weight": torch.ones(2),
}
Changes = dict[str, Tensor]


def side(run: str, changes: Changes) -> Trace:
    return Trace(run, "one", "bf16ds", {**EXACT, **changes}, trained=TRAINED)


def real(micro_batch: int) -> Tensor:
    return EXACT["mb0.batch.attention_mask"].bool()


def judged(prototype: Changes, port: Changes, gone: str = "") -> dict[str, Row]:
    found = side("port", port)
    found.tensors.pop(gone, None)
    rows = tensor_rows(SUBJECT, side("reference", {}), side("recorded", prototype), found, real, BF16)
    return {row.tensor: row for row in rows}


def off(name: str, by: float) -> Changes:
    return {name: EXACT[name] + by}


def test_everything_that_was_rounded_is_judged() -> None:
    rows = judged({}, {})
    assert set(rows) == {"mb0.step0.logits", "mb0.losses", "mb0.grad.fc.weight", "mb0.grad.vectors", "after"}
    assert all(row.passed and row.measured == 0 for row in rows.values())


LOGITS, FC, NORM, BIAS = "mb0.step0.logits", "mb0.grad.fc.weight", "mb0.grad.norm.weight", "mb0.grad.fc.bias"


@pytest.mark.parametrize(
    ("prototype", "port", "judge", "passed"),
    [
        (off(LOGITS, 0.01), off(LOGITS, 0.005), LOGITS, True),
        (off(LOGITS, 0.01), off(LOGITS, 0.014), LOGITS, True),
        (off(LOGITS, 0.01), off(LOGITS, 0.016), LOGITS, False),
        (off(LOGITS, 0.01), off(LOGITS, float("nan")), LOGITS, False),
        ({}, off(FC, 1e-6), FC, False),
        ({}, off("mb0.step0.loss", 0.01), "mb0.losses", True),
        ({}, off("mb0.step1.loss", 0.05), "mb0.losses", False),
        (off(NORM, 0.001), off(BIAS, 0.001), "mb0.grad.vectors", True),
        (off(NORM, 0.001), off(BIAS, 0.002), "mb0.grad.vectors", False),
        (off("after.fc.weight", 0.001), off("after.norm.weight", 0.001), "after", True),
        (off("after.norm.weight", 0.001), off("after.fc.weight", 0.002), "after", False),
    ],
)
def test_half_as_much_again_is_allowed(prototype: Changes, port: Changes, judge: str, passed: bool) -> None:
    assert judged(prototype, port)[judge].passed is passed


def test_padding_has_no_error() -> None:
    padded = EXACT[LOGITS].clone()
    padded[0, 2] = 1e3
    assert judged(off(LOGITS, 0.01), {LOGITS: padded})[LOGITS].measured == 0


@pytest.mark.parametrize(
    ("gone", "judge"), [(LOGITS, LOGITS), (FC, FC), (NORM, "mb0.grad.vectors"), ("after.norm.weight", "after")]
)
def test_what_the_port_lacks_fails(gone: str, judge: str) -> None:
    row = judged({}, {}, gone)[judge]
    assert not row.passed
    assert "missing on the port's side" in row.detail


def test_the_error_is_a_relative_root_mean_square() -> None:
    changed = side("port", {FC: EXACT[FC] + torch.tensor([[0.3, 0.0], [0.0, 0.4]])})
    assert error(side("reference", {}), changed, FC, TRAINED, real) == pytest.approx(0.25)
    assert error(side("reference", {}), changed, LOGITS, TRAINED, lambda j: torch.zeros(0).bool()) is None


def curve(run: str, losses: Tensor) -> Trace:
    points = [Point(0, loss, (), None, 0.0, 0.0) for loss in losses.tolist()]
    return Trace(run, "one", "bf16ds", curve=points)


EXACT_LOSSES = torch.linspace(4.0, 3.0, 40, dtype=torch.float64)
NOISE = torch.linspace(-1, 1, 40, dtype=torch.float64).mul(50).sin() * 1e-3
FAULTS = {
    "as far as the prototype": (-NOISE, set()),
    "twice as far": (2 * NOISE, {"loss, part 1 of 4", "loss, part 2 of 4", "loss, part 3 of 4", "loss, part 4 of 4"}),
    "wrong from step 30 on": (
        torch.where(torch.arange(40) >= 30, NOISE + 3e-3, NOISE),
        {"loss, part 4 of 4", "loss, last part"},
    ),
    "not a number": (torch.where(torch.arange(40) == 5, torch.nan, NOISE), {"loss, part 1 of 4"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_curves_are_judged_step_by_step(fault: str) -> None:
    error, named = FAULTS[fault]
    sides = curve("reference", EXACT_LOSSES), curve("recorded", EXACT_LOSSES * (1 + NOISE))
    rows = distance_rows(SUBJECT, *sides, curve("port", EXACT_LOSSES * (1 + error)), BF16)
    assert len(rows) == 5
    assert {row.tensor for row in rows if not row.passed} == named


def test_a_curve_that_ends_early_fails() -> None:
    sides = curve("reference", EXACT_LOSSES), curve("recorded", EXACT_LOSSES)
    assert not any(row.passed for row in distance_rows(SUBJECT, *sides, curve("port", EXACT_LOSSES[:-1]), BF16))
