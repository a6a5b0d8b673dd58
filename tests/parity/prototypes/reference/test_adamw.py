"""Optimizer, schedule and clipping against torch's and transformers'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from parity.prototypes.reference.adamw import (
    BETA1,
    BETA2,
    EPS,
    WEIGHT_DECAY,
    AdamW,
    clip_by_norm,
    clip_by_value,
    linear_schedule,
)

STEPS = 20


def start() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"matrix": torch.randn(7, 5), "norm": torch.rand(5) + 0.5}


def gradients(step: int) -> dict[str, Tensor]:
    torch.manual_seed(step + 1)
    return {"matrix": torch.randn(7, 5) * 10.0 ** (step % 4 - 3), "norm": torch.randn(5)}


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_twenty_steps_are_torch_s(lr: float) -> None:
    ours, theirs = start(), {name: value.requires_grad_() for name, value in start().items()}
    settings = {"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": WEIGHT_DECAY}
    expected = torch.optim.AdamW(theirs.values(), lr=lr, **settings)
    found = AdamW(ours)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            theirs[name].grad = gradient
        expected.step()
        found.step(gradients(step), lr)
        assert all((ours[name] - theirs[name]).abs().max() <= 1e-7 for name in ours)
    assert (ours["matrix"] - start()["matrix"]).abs().max() > lr


def test_the_hyperparameters_are_the_prototypes() -> None:
    assert (BETA1, BETA2, EPS, WEIGHT_DECAY) == (0.9, 0.95, 1e-8, 0.01)


def test_a_parameter_without_a_gradient_stays() -> None:
    ours = start()
    AdamW(ours).step({"matrix": torch.ones(7, 5)}, 0.1)
    assert torch.equal(ours["norm"], start()["norm"])
    assert not torch.equal(ours["matrix"], start()["matrix"])


@pytest.mark.parametrize(("total", "warmup"), [(42, 0), (42, 1), (212, 2), (10, 10), (1, 0), (300, 17)])
def test_schedule_is_transformers(total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total + 3):
        assert linear_schedule(step, total, warmup) == schedule.get_last_lr()[0]
        optimizer.step(), schedule.step()


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
def test_norm_clipping_is_torch_s(scale: float) -> None:
    given = {name: value * scale for name, value in gradients(2).items()}
    parameters = [torch.zeros_like(value).requires_grad_() for value in given.values()]
    for parameter, gradient in zip(parameters, given.values(), strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    found, before = clip_by_norm(given, 1.0)
    assert before == pytest.approx(float(norm), rel=1e-6)
    for value, parameter in zip(found.values(), parameters, strict=True):
        torch.testing.assert_close(value, parameter.grad, rtol=1e-6, atol=0)


def test_value_clipping_is_torch_s() -> None:
    given = gradients(3)
    parameter = torch.zeros(7, 5, requires_grad=True)
    parameter.grad = given["matrix"].clone()
    torch.nn.utils.clip_grad_value_([parameter], 0.5)
    found = clip_by_value(given, 0.5)["matrix"]
    assert torch.equal(found, parameter.grad)
    assert found.abs().max() == 0.5
