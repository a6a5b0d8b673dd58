"""Optimizer steps recomputed: what is right is within rounding, and every planted fault is named by its check."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn, optim

from parity.checks import run_checks
from parity.step import Clip, Rule, StepAuditor, linear_schedule
from parity.trace import Trace
from parity.trace_pair import TracePair
from parity.verdict import Against, Status

LR, STEPS, CLIP = 1e-2, 12, Clip("norm", 0.5)


class Toy:
    """Two parameters in training; a fault replaces one of the verbs."""

    def __init__(self, make=optim.AdamW, **options):
        torch.manual_seed(0)
        self.module = nn.Linear(7, 5)
        self.optimizer = make(self.module.parameters(), lr=LR, **options)
        self.rate = lambda n: LR * linear_schedule(n, 2 * STEPS, 2)
        self.limit = 0.5
        self.step = lambda n: self.optimizer.step()

    def train(self, clip=CLIP):
        rule = Rule(None, clip, lambda n: LR * linear_schedule(n, 2 * STEPS, 2))
        parameters = dict(self.module.named_parameters())
        auditor = StepAuditor(rule, parameters, self.optimizer)
        for number in range(STEPS):
            batch = torch.randn(3, 7, generator=torch.Generator().manual_seed(number))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(number)
            self.optimizer.zero_grad()
            self.module(batch).square().sum().backward()
            auditor.entered()
            nn.utils.clip_grad_norm_(parameters.values(), self.limit)
            self.step(number)
            auditor.left()
        auditor.close()
        return auditor.audits


def rows_of(audits):
    found = Trace("port", "toy", "float32", audits=audits)
    evidence = TracePair(None, Trace("original", "toy", "float32"), found)
    return run_checks(evidence, only=("clip", "schedule", "optimizer_step"))


def failed(audits):
    """The checks with a failed row."""
    rows = rows_of(audits)
    assert {row.check for row in rows} == {"clip", "schedule", "optimizer_step"}
    return {row.check for row in rows if row.status is Status.FAILED}


def changed(when=lambda number: True, **changes):
    """The step computes with another hyperparameter than its group says; a function is of the one before."""

    def plant(toy):
        group, step = toy.optimizer.param_groups[0], toy.step

        def around(number):
            before = {name: group[name] for name in changes}
            other = {name: new(before[name]) if callable(new) else new for name, new in changes.items()}
            hook = toy.optimizer.register_step_pre_hook(lambda *_: group.update(other) if when(number) else None)
            step(number)  # the hook runs after the auditor's
            hook.remove()
            group.update(before)

        toy.step = around

    return plant


def frozen(toy):
    toy.module.bias.requires_grad_(False)


def moving(toy):
    """A parameter without a gradient must stay."""
    frozen(toy)
    step = toy.step

    def around(number):
        step(number)
        with torch.no_grad():
            toy.module.bias.add_(1e-4)

    toy.step = around


def by_hand(toy):
    """Rate and decay are set inside of the step, right before the optimizer's."""
    rate, step = toy.rate, toy.step
    toy.rate = lambda n: 1.0

    def around(number):
        toy.optimizer.param_groups[0].update(lr=rate(number), weight_decay=0.1 * number)
        step(number)

    toy.step = around


class Either(nn.Module):
    """One of two parts in turn: the other gets no gradient, and Adam does not count the step for it."""

    def __init__(self):
        super().__init__()
        self.parts, self.calls = nn.ModuleList(nn.Linear(7, 5) for _ in range(2)), 0

    def forward(self, x):
        self.calls += 1
        return self.parts[self.calls % 2](x)


def in_turn(toy):
    toy.module = Either()
    toy.optimizer = type(toy.optimizer)(toy.module.parameters(), lr=LR)


def without_group(toy):
    toy.optimizer = type(toy.optimizer)([toy.module.weight], lr=LR)


def at_the_end(change):
    """Something done after the last step."""

    def plant(toy):
        step = toy.step
        toy.step = lambda number: (step(number), change(toy) if number == STEPS - 1 else None)[0]

    return plant


FAULTS = {
    "none": (lambda toy: None, set()),
    "set by hand": (by_hand, set()),
    "parts in turn": (in_turn, set()),
    "a parameter in no group": (without_group, set()),
    "a weight that is no number": (
        at_the_end(lambda toy: toy.module.weight.data[0, 0].fill_(torch.nan)),
        {"optimizer_step"},
    ),
    "a step not counted for one parameter": (
        at_the_end(lambda toy: toy.optimizer.state[toy.module.bias]["step"].sub_(1)),
        {"optimizer_step"},
    ),
    "a parameter frozen": (frozen, set()),
    "a frozen parameter moved": (moving, {"optimizer_step"}),
}


@pytest.mark.parametrize(("plant", "named"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_named_by_its_check(plant, named):
    plant(toy := Toy(betas=(0.9, 0.95), weight_decay=0.01))
    assert failed(toy.train()) == named


def grouped(parameters, lr):
    """The bias decays, and the weight does not."""
    weight, bias = parameters
    return optim.AdamW([{"params": [weight], "weight_decay": 0.0}, {"params": [bias], "weight_decay": 0.5}], lr=lr)


OPTIMIZERS = [
    (optim.AdamW, {"betas": (0.9, 0.95), "fused": True}),
    (optim.AdamW, {"amsgrad": True}),
    (optim.Adam, {"weight_decay": 0.01}),
    (grouped, {}),
    (optim.SGD, {"weight_decay": 0.1}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    *((make, {}) for make in (optim.Adagrad, optim.Adamax, optim.NAdam)),
    *((make, {}) for make in (optim.RAdam, optim.RMSprop, optim.Rprop)),
]


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_any_of_torch_s_optimizers_is_within_rounding_and_its_settings_are_seen(make, options):
    audits = Toy(make, **options).train()
    assert failed(audits) == set()
    assert len(audits) == STEPS
    own = make is grouped or ("amsgrad" not in options and make in (optim.Adam, optim.AdamW))
    assert rows_of(audits)[-1].against is (Against.REFERENCE if own else Against.LIBRARY)
    assert any(audit.norm_after < audit.norm_before for audit in audits)
    key, off = ("etas", (0.5, 1.3)) if make is optim.Rprop else ("lr", lambda rate: rate * 0.97)
    changed(bool, **{key: off})(toy := Toy(make, **options))
    assert failed(toy.train()) == {"optimizer_step"}


def test_a_deviation_that_is_no_number_is_the_worst_wherever_it_stands():
    audits = Toy().train()
    audits[4].deviations["weight"] = replace(audits[4].deviations["weight"], rounding=math.nan)
    (row,) = (row for row in rows_of(audits) if row.quantity == "weight")
    assert not row.passed
    assert row.detail.startswith("worst in step 5 of ")


class Own(optim.AdamW):
    """Nobody knows what it does."""


def test_an_optimizer_without_a_formula_says_so():
    for toy in (Toy(Own), Toy(maximize=True), Toy(optim.ASGD)):
        frozen(toy)
        row = rows_of(toy.train())[-1]
        assert (row.status, "no formula of this optimizer" in row.detail) == (Status.NOT_APPLICABLE, True)


def test_what_clips_by_value_is_told_from_what_clips_by_norm():
    assert failed(Toy().train(Clip("value", 0.01))) == {"clip"}


def test_nothing_watched_is_not_a_pass():
    assert {row.status for row in rows_of([])} == {Status.NOT_APPLICABLE}
