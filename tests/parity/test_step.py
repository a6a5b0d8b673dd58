"""Optimizer steps recomputed: what is right is within rounding, and every planted fault is named by its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from parity.compare import Subject
from parity.step import (
    Clip,
    Rule,
    StepAudit,
    StepAuditor,
    clip_rows,
    linear_schedule,
    schedule_rows,
    update_of,
    update_rows,
)
from parity.tolerances import tables

LR, STEPS = 1e-2, 12

Fault = Callable[["Toy"], None]


class Toy:
    """Two parameters in training; a fault replaces one of the verbs."""

    def __init__(self, dtype: torch.dtype, make: Callable[..., Any] = AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(7, 5).to(dtype)
        self.optimizer = make(self.module.parameters(), lr=LR, **options)
        self.rate: Callable[[int], float] = lambda n: LR * linear_schedule(n, 2 * STEPS, 2)
        self.limit = 0.5
        self.step: Callable[[int], None] = lambda n: self.optimizer.step()

    def train(self, clip: bool = True) -> list[StepAudit]:
        update = update_of(self.optimizer)
        assert update is not None
        rule = Rule(update, Clip("norm", 0.5) if clip else None, lambda n: LR * linear_schedule(n, 2 * STEPS, 2))
        return self.run(rule)

    def run(self, rule: Rule) -> list[StepAudit]:
        parameters = dict(self.module.named_parameters())
        auditor = StepAuditor(rule, parameters, self.optimizer)
        for number in range(STEPS):
            batch = torch.randn(3, 7, generator=torch.Generator().manual_seed(number)).to(self.module.weight.dtype)
            self.optimizer.param_groups[0]["lr"] = self.rate(number)
            self.optimizer.zero_grad()
            self.module(batch).square().sum().backward()
            auditor.entered()
            if rule.clip is not None:
                nn.utils.clip_grad_norm_(parameters.values(), self.limit)
            self.step(number)
            auditor.left()
        auditor.close()
        return auditor.audits


def failed(audits: list[StepAudit]) -> set[str]:
    """The checks with a failed row."""
    table = tables()["float32"]
    rows = [
        *clip_rows(Subject("clip", "toy", "port"), audits, table["clip"]),
        *schedule_rows(Subject("schedule", "toy", "port"), audits, table["lr"]),
        *update_rows(Subject("optimizer_step", "toy", "port"), audits, table["update"], table["state"], table["rows"]),
    ]
    assert len(rows) >= 3
    return {row.check for row in rows if not row.passed}


def wrapped(toy: Toy, around: Callable[[int, Callable[[], None]], None]) -> None:
    """Let ``around(number, step)`` stand for every optimizer step."""
    step = toy.optimizer.step
    toy.step = lambda number: around(number, step)


def slower(toy: Toy) -> None:
    def around(number: int, step: Callable[[], None]) -> None:
        group = toy.optimizer.param_groups[0]
        rate = group["lr"]
        group["lr"] = rate * (0.97 if number else 1.0)
        step()
        group["lr"] = rate

    wrapped(toy, around)


def grouped(**changes: Any) -> Fault:
    """Another hyperparameter than the rule's."""

    def plant(toy: Toy) -> None:
        def around(number: int, step: Callable[[], None]) -> None:
            group = toy.optimizer.param_groups[0]
            before = {name: group[name] for name in changes}
            group.update(changes)
            step()
            group.update(before)

        wrapped(toy, around)

    return plant


def noisy(toy: Toy) -> None:
    def around(number: int, step: Callable[[], None]) -> None:
        for parameter in toy.module.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(1 + 1e-3 * torch.randn_like(parameter.grad))
        step()

    wrapped(toy, around)


def skipping(toy: Toy) -> None:
    wrapped(toy, lambda number, step: None if number == 9 else step())


def looser(toy: Toy) -> None:
    toy.limit = 0.51


def late(toy: Toy) -> None:
    rate = toy.rate
    toy.rate = lambda n: rate(max(0, n - 1))


def lower_after_eight(toy: Toy) -> None:
    rate = toy.rate
    toy.rate = lambda n: rate(n) * (0.9 if n >= 8 else 1.0)


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "rate 3 % low from step 2": (slower, {"optimizer_step"}),
    "decay off": (grouped(weight_decay=0.0), {"optimizer_step"}),
    "beta2 0.951": (grouped(betas=(0.9, 0.951)), {"optimizer_step"}),
    "eps 1e-6": (grouped(eps=1e-6), {"optimizer_step"}),
    "clip 2 % off": (looser, {"clip"}),
    "schedule one step late": (late, {"schedule"}),
    "rate 10 % low after step 8": (lower_after_eight, {"schedule"}),
    "tenth step skipped": (skipping, {"optimizer_step"}),
    "gradients with 0.1 % noise": (noisy, {"clip"}),
}


@pytest.mark.parametrize("make", [AdamW, Adam])
def test_a_right_step_is_within_rounding(make: Any) -> None:
    audits = Toy(torch.float32, make, betas=(0.9, 0.95), weight_decay=0.01, fused=True).train()
    assert failed(audits) == set()
    assert len(audits) == STEPS
    assert any(audit.norm_after < audit.norm_before for audit in audits)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening"), [(0.0, False, 0.0), (0.9, True, 0.0), (0.9, False, 0.3)]
)
def test_gradient_descent_is_within_rounding(momentum: float, nesterov: bool, dampening: float) -> None:
    options = {"momentum": momentum, "nesterov": nesterov, "dampening": dampening, "weight_decay": 0.1}
    assert failed(Toy(torch.float32, torch.optim.SGD, **options).train()) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_by_its_check(fault: str) -> None:
    plant, named = FAULTS[fault]
    toy = Toy(torch.float32, betas=(0.9, 0.95), weight_decay=0.01)
    plant(toy)
    assert failed(toy.train()) == named


def test_what_clips_by_value_is_told_from_what_clips_by_norm() -> None:
    toy = Toy(torch.float32)
    update = update_of(toy.optimizer)
    assert update is not None
    assert failed(toy.run(Rule(update, Clip("value", 0.01), toy.rate))) == {"clip"}


def test_an_optimizer_without_a_formula_has_none() -> None:
    assert update_of(torch.optim.RMSprop(nn.Linear(2, 2).parameters())) is None
    assert update_of(AdamW(nn.Linear(2, 2).parameters(), amsgrad=True)) is None


def test_a_parameter_without_gradient_must_stay() -> None:
    toy = Toy(torch.float32)
    toy.module.bias.requires_grad_(False)
    step = toy.step

    def moving(number: int) -> None:
        step(number)
        with torch.no_grad():
            toy.module.bias.add_(1e-4)

    assert failed(toy.train()) == set()
    toy.step = moving
    assert failed(toy.train()) == {"optimizer_step"}


def test_nothing_watched_is_a_failure() -> None:
    assert failed([]) == {"clip", "schedule", "optimizer_step"}
