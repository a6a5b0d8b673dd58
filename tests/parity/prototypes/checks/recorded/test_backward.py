"""Gradient flow: each parameter trains as it should, or the row says what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.prototypes.checks.recorded.backward import (
    check_gradient_flow,
    check_gradients,
    check_optimizer_step,
    gradient_flow,
)
from torch import Tensor

from parity.prototypes.case import Case
from parity.prototypes.checks.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Row

START, END = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
TRAINED = {
    "init.fc.weight": START,
    "mb0.grad.fc.weight": torch.tensor([0.0, -3.0]),
    "mb0.grad_norm": torch.tensor([3.0]),
    "after.fc.weight": END,
    "final.fc.weight": END,
    "init.embed.weight": START,
    "final.embed.weight": START,
}


def evidence(case: Case, found: dict[str, Tensor | None], **changes: Any) -> Evidence:
    """The prototype trains ``fc`` and freezes ``embed``; ``found`` changes the port's tensors, None takes one away."""
    tensors = {name: value for name, value in {**TRAINED, **found}.items() if value is not None}
    trace = Trace("port", case.name, "fp32", tensors, trained=("fc.weight",), frozen=("embed.weight",))
    expected = Trace("recorded", case.name, "fp32", dict(TRAINED))
    return Evidence(case, expected, replace(trace, **changes), lambda: expected)


def complaints(rows: list[Row]) -> dict[str, str]:
    return {row.tensor: row.detail for row in rows if not row.passed}


def test_the_flow_is_measured(case: Case) -> None:
    fc, embed = gradient_flow(evidence(case, {}))
    assert (fc.parameter, fc.trainable, fc.grad_max, fc.moved) == ("fc.weight", True, 3.0, 0.5)
    assert (embed.parameter, embed.trainable, embed.grad_max, embed.moved) == ("embed.weight", False, None, 0.0)
    assert complaints(check_gradient_flow(evidence(case, {}))) == {}


@pytest.mark.parametrize(
    ("found", "name", "complaint"),
    [
        ({"mb0.grad.fc.weight": None}, "fc.weight", "got no gradient: its path to the loss is cut"),
        ({"mb0.grad.fc.weight": torch.zeros(2)}, "fc.weight", "gradient is zero everywhere"),
        ({"mb0.grad.fc.weight": torch.tensor([1.0, float("nan")])}, "fc.weight", "gradient is nan"),
        ({"mb0.grad.fc.weight": torch.tensor([1.0, float("inf")])}, "fc.weight", "gradient is inf"),
        ({"final.fc.weight": START}, "fc.weight", "did not move over the whole run"),
        ({"final.fc.weight": None}, "fc.weight", "did not move over the whole run"),
        ({"mb0.grad.embed.weight": START}, "embed.weight", "frozen, but has a gradient of up to 2"),
        ({"final.embed.weight": END}, "embed.weight", "frozen, but moved by 0.5"),
    ],
)
def test_a_parameter_that_does_not_train_as_it_should(
    found: dict[str, Tensor | None], name: str, complaint: str, case: Case
) -> None:
    said = complaints(check_gradient_flow(evidence(case, found)))
    assert said.keys() == {name}
    assert complaint in said[name]


def test_what_is_trained_on_one_side_only_is_named(case: Case) -> None:
    rows = check_gradient_flow(evidence(case, {}, trained=("embed.weight",), frozen=("fc.weight",)))
    assert complaints(rows)[""] == "frozen here: ['fc.weight']; trained here only: ['embed.weight']"


def test_a_prototype_that_trains_nothing_proves_nothing(case: Case) -> None:
    still = evidence(case, {})
    still.expected.tensors = {"init.fc.weight": START, "final.fc.weight": START}
    assert "nothing compared" in complaints(check_gradient_flow(still))[""]


@pytest.mark.parametrize("value", [torch.tensor([0.0, -3.1]), torch.tensor([0.0, 3.0]), None, torch.zeros(3)])
def test_another_gradient_fails(value: Tensor | None, case: Case) -> None:
    assert complaints(check_gradients(evidence(case, {"mb0.grad.fc.weight": value}))).keys() == {"fc.weight"}


@pytest.mark.parametrize("value", [torch.tensor([3.1]), torch.tensor([float("nan")]), None])
def test_another_norm_fails(value: Tensor | None, case: Case) -> None:
    assert complaints(check_gradients(evidence(case, {"mb0.grad_norm": value}))).keys() == {"mb0.grad_norm"}


def test_a_frozen_parameter_the_recording_left_out_is_not_asked_for(case: Case) -> None:
    rows = check_optimizer_step(evidence(case, {"after.embed.weight": START}))
    assert [row.tensor for row in rows] == ["fc.weight"]


def test_a_trained_parameter_the_recording_left_out_fails(case: Case) -> None:
    found = evidence(case, {"after.embed.weight": START}, trained=("fc.weight", "embed.weight"), frozen=())
    assert complaints(check_optimizer_step(found)).keys() == {"embed.weight"}
