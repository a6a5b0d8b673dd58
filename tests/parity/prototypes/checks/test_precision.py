"""bfloat16: errors against float64, and how two of them compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.checks.precision import check_precision, error
from parity.tolerances import tables
from parity.trace import Trace
from parity.verdict import Row

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


def side(run: str, changes: dict[str, Tensor]) -> Trace:
    return Trace(run, "one", "bf16ds", {**EXACT, **changes}, trained=("fc.weight", "norm.weight"))


def held(case: Case, prototype: dict[str, Tensor], port: dict[str, Tensor]) -> Evidence:
    traces, table = (side("recorded", prototype), side("port", port)), tables()["prototype_bf16"]
    return Evidence(replace(case, dtype="bf16ds"), *traces, table, oracle=lambda: side("reference", {}))


def judged(case: Case, prototype: dict[str, Tensor], port: dict[str, Tensor]) -> dict[str, Row]:
    evidence = held(case, prototype, port)
    return {row.tensor: row for row in check_precision(evidence)}


def test_everything_that_was_rounded_is_judged(case: Case) -> None:
    rows = judged(case, {}, {})
    assert set(rows) == {"mb0.step0.logits", "mb0.losses", "mb0.grad.fc.weight", "mb0.grad.vectors", "after"}
    assert all(row.passed and row.measured == 0 for row in rows.values())


@pytest.mark.parametrize(("port", "passed"), [(0.5, True), (1.4, True), (1.6, False), (float("nan"), False)])
def test_half_as_much_again_is_allowed(port: float, passed: bool, case: Case) -> None:
    name = "mb0.step0.logits"
    rows = judged(case, {name: EXACT[name] + 0.01}, {name: EXACT[name] + 0.01 * port})
    assert rows[name].passed is passed


def test_padding_has_no_error(case: Case) -> None:
    name = "mb0.step0.logits"
    padded = EXACT[name].clone()
    padded[0, 2] = 1e3
    assert judged(case, {name: EXACT[name] + 0.01}, {name: padded})[name].measured == 0


def test_without_an_error_of_its_own_the_prototype_allows_none(case: Case) -> None:
    name = "mb0.grad.fc.weight"
    assert not judged(case, {}, {name: EXACT[name] + 1e-6})[name].passed


def test_losses_count_together_and_never_below_bfloat16(case: Case) -> None:
    """A prototype whose losses are right by cancellation asks no more of a port than bfloat16 can give."""
    rows = judged(case, {}, {"mb0.step0.loss": torch.tensor([3.01])})
    assert rows["mb0.losses"].passed
    assert not judged(case, {}, {"mb0.step1.loss": torch.tensor([4.05])})["mb0.losses"].passed


def test_gradients_of_norms_and_biases_count_together(case: Case) -> None:
    norm, bias = ({name: EXACT[name] + 0.001} for name in ("mb0.grad.norm.weight", "mb0.grad.fc.bias"))
    assert judged(case, norm, bias)["mb0.grad.vectors"].passed
    assert judged(case, norm, norm | bias)["mb0.grad.vectors"].passed
    assert not judged(case, norm, {"mb0.grad.fc.bias": EXACT["mb0.grad.fc.bias"] + 0.002})["mb0.grad.vectors"].passed


def test_parameters_after_the_step_count_together(case: Case) -> None:
    off = {"after.fc.weight": EXACT["after.fc.weight"] + 0.001}
    elsewhere = {"after.norm.weight": EXACT["after.norm.weight"] + 0.001}
    assert judged(case, off, elsewhere)["after"].passed
    assert not judged(case, elsewhere, off | elsewhere)["after"].passed


@pytest.mark.parametrize(
    "gone", ["mb0.step0.logits", "mb0.grad.fc.weight", "mb0.grad.norm.weight", "after.norm.weight"]
)
def test_what_the_port_lacks_fails(gone: str, case: Case) -> None:
    name = {"after.norm.weight": "after", "mb0.grad.norm.weight": "mb0.grad.vectors"}.get(gone, gone)
    evidence = held(case, {}, {})
    del evidence.found.tensors[gone]
    row = next(row for row in check_precision(evidence) if row.tensor == name)
    assert not row.passed
    assert "missing on the port's side" in row.detail


def test_the_error_is_a_relative_root_mean_square(case: Case) -> None:
    name = "mb0.grad.fc.weight"
    off = {name: EXACT[name] + torch.tensor([[0.3, 0.0], [0.0, 0.4]])}
    evidence = held(case, off, {})
    assert evidence.oracle is not None
    assert error(evidence.oracle(), evidence.expected, name, evidence) == pytest.approx(0.25)


def test_a_batch_without_a_mask_cannot_be_judged(case: Case) -> None:
    evidence = held(case, {}, {})
    del evidence.expected.tensors["mb0.batch.attention_mask"]
    assert evidence.oracle is not None
    assert error(evidence.oracle(), evidence.found, "mb0.step0.logits", evidence) is None
