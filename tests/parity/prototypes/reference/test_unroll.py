"""The two reference models: their objectives by hand, and the same numbers whichever way they are computed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.prototypes.case import Case
from parity.prototypes.reference.loop import Visits, trace_reference
from parity.prototypes.reference.setup import Setup, prepare
from parity.prototypes.reference.steps import Unrolled, kl_loss, masked_mean

NAMES = ["eagle3_fp32_k5", "hass_fp32_k4"]


def unrolled(setup: Setup, **options: Any) -> tuple[Unrolled, dict[str, Tensor]]:
    """A forward on the first batch and the gradients of all its losses."""
    weights = setup.weights()
    out = setup.forward(weights, next(Visits(setup.case).batches_of_pass(0)), **options)
    torch.stack(list(out.backward)).sum().backward()
    return out, {name: weights[name].grad for name in setup.masters}


@pytest.fixture(params=NAMES)
def setup(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Setup:
    return prepare(cases[request.param], torch.float64)


def test_projecting_once_gives_the_same_forward_and_gradients(setup: Setup) -> None:
    (again, gradients), (once, same) = unrolled(setup), unrolled(setup, project_once=True)
    for one, other in zip(again.steps, once.steps, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0, atol=1e-12)
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, same[name], rtol=1e-9, atol=1e-12, msg=name)


def test_alignments_agree_until_step_two(setup: Setup) -> None:
    own, chain = unrolled(setup)[0], unrolled(setup, own_position=False)[0]
    gaps = [float((a.logits - b.logits).detach().abs().max()) for a, b in zip(own.steps, chain.steps, strict=True)]
    assert max(gaps[:2]) < 1e-12
    assert min(gaps[2:]) > 1e-2


def test_the_next_state_is_the_last_one_moved_by_a_position(setup: Setup) -> None:
    steps = unrolled(setup)[0].steps
    for before, after in itertools.pairwise(steps):
        assert torch.equal(after.hidden_in[:, 0], before.hidden_in[:, 0])
        assert torch.equal(after.hidden_in[:, 1:], before.hidden[:, :-1])


def test_every_trained_parameter_has_a_gradient(setup: Setup) -> None:
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in unrolled(setup)[1].values())


def test_everything_is_computed_in_double_precision(setup: Setup) -> None:
    out, gradients = unrolled(setup)
    tensors = [out.target_p, *gradients.values(), *(step.logits for step in out.steps)]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "hass_fp32_k3"])
def test_double_precision_moves_numbers_by_rounding_only(name: str, cases: dict[str, Case]) -> None:
    single, double = (
        trace_reference(cases[name], dtype, optimizer_steps=1) for dtype in (torch.float32, torch.float64)
    )
    gap = (single.tensors["mb0.step2.logits"].double() - double.tensors["mb0.step2.logits"]).abs().max()
    assert 0 < gap < 1e-5
    assert double.tensors["after.fc.weight"].dtype == torch.float64


def test_eagle3_sums_its_losses_and_runs_one_backward(cases: dict[str, Case]) -> None:
    out, _ = unrolled(prepare(cases["eagle3_fp32_k5"]))
    assert len(out.backward) == 1
    assert out.backward[0] is out.loss
    assert out.loss.item() == pytest.approx(sum(step.loss.item() for step in out.steps), rel=1e-6)


def test_hass_runs_a_backward_a_step_and_reports_the_mean(cases: dict[str, Case]) -> None:
    out, _ = unrolled(prepare(cases["hass_fp32_k4"]))
    assert list(out.backward) == [step.loss for step in out.steps]
    assert out.loss.item() == pytest.approx(sum(step.loss.item() for step in out.steps) / 4, rel=1e-6)
    assert not any(step.hidden_in.requires_grad for step in out.steps)


def test_hass_logs_cross_entropies_of_the_last_step(cases: dict[str, Case]) -> None:
    setup = prepare(cases["hass_fp32_k3"])
    out, _ = unrolled(setup)
    mask = next(Visits(setup.case).batches_of_pass(0))["loss_mask"]
    log_q = out.steps[-1].logits.detach().double().log_softmax(-1)
    terms = -(out.target_p.double() * log_q)
    everything = float(masked_mean(terms.sum(-1), mask))
    assert out.logged["train/ploss"] == pytest.approx(everything, rel=1e-5)
    assert 0 < out.logged["train/topkloss"] < everything


def test_the_divergence_is_the_formula() -> None:
    target = torch.tensor([[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]])
    logits, mask = torch.randn(1, 3, 3), torch.tensor([[1, 0, 1]])
    q = logits.softmax(-1)[0].tolist()
    rows = [0.5 * math.log(0.5 / q[0][0]) + 0.5 * math.log(0.5 / q[0][1]), -math.log(q[2][0])]
    assert kl_loss(logits, target, mask).item() == pytest.approx(sum(rows) / (2 + 1e-5), rel=1e-6)


def test_no_rows_give_no_loss() -> None:
    assert kl_loss(torch.randn(1, 2, 3), torch.full((1, 2, 3), 1 / 3), torch.zeros(1, 2)).item() == 0


def test_equal_distributions_have_no_divergence() -> None:
    logits = torch.randn(2, 4, 5)
    assert kl_loss(logits, logits.softmax(-1), torch.ones(2, 4)).abs().item() < 1e-7
