"""Faults planted from outside into optimizer, clipping and schedule of the ports: each is named, in both precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import ports.training.loop
from parity.checks import run_checks
from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.pair import TABLES
from parity.prototypes.port import run_port
from parity.prototypes.recorded import load_recorded
from parity.tolerances import table_for
from parity.verdict import Status
from tests.parity.faults import Plant, returns, takes

CHECKS = ("clip", "schedule", "optimizer_step")
STEPS = 12


def stepping(around: Callable[[Any, int, Callable[[], None]], None]) -> Plant:
    """``around(optimizer, number, step)`` in the place of every AdamW step, counted from 0."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original, count = torch.optim.AdamW.step, iter(range(10**6))

        def step(self: Any, closure: Any = None) -> None:
            around(self, next(count), lambda: original(self))

        patch.setattr(torch.optim.AdamW, "step", step)

    return plant


def grouped(first: int = 0, **changes: Any) -> Plant:
    """Hyperparameters that change behind the loop's back, only while the optimizer steps."""

    def around(optimizer: Any, number: int, step: Callable[[], None]) -> None:
        group = optimizer.param_groups[0]
        before = dict(group)
        if number >= first:
            group.update({name: value(group[name]) if callable(value) else value for name, value in changes.items()})
        step()
        group.update({name: before[name] for name in changes})

    return stepping(around)


def skipping(optimizer: Any, number: int, step: Callable[[], None]) -> None:
    if number % 10 != 9:
        step()


def noisy(optimizer: Any, number: int, step: Callable[[], None]) -> None:
    draw = torch.Generator().manual_seed(number)
    for parameter in optimizer.param_groups[0]["params"]:
        if parameter.grad is not None:
            parameter.grad.mul_(1 + 1e-3 * torch.randn(parameter.grad.shape, generator=draw))
    step()


def scheduled(change: Callable[[Callable[[int], float], int], float]) -> Plant:
    """Another factor at step n than the schedule's own."""

    def changed(built: Any) -> Any:
        factor = built.lr_lambdas[0]
        return torch.optim.lr_scheduler.LambdaLR(built.optimizer, lambda n: change(factor, n))

    return returns(ports.training.loop, "build_schedule", changed)


def clipped(kind: str, by: float) -> Plant:
    """At another limit."""
    return takes(Accelerator, f"clip_grad_{kind}_", lambda self, given, limit: (self, given, by * limit))


FAULTS: dict[str, tuple[Plant, list[str]]] = {
    "none": (lambda patch: None, []),
    "rate 3 % low from step 2": (grouped(first=1, lr=lambda rate: 0.97 * rate), ["schedule"]),
    "decay off": (grouped(weight_decay=0.0), ["optimizer_step"]),
    "beta2 0.951": (grouped(betas=(0.9, 0.951)), ["optimizer_step"]),
    "eps 1e-6": (grouped(eps=1e-6), ["optimizer_step"]),
    "clip 2 % off": (clipped("norm", 1.02), ["clip"]),
    "schedule one step late": (scheduled(lambda factor, n: factor(max(0, n - 1))), ["schedule"]),
    "rate 10 % low after step 8": (scheduled(lambda factor, n: factor(n) * (0.9 if n >= 8 else 1.0)), ["schedule"]),
    "every tenth step skipped": (stepping(skipping), ["optimizer_step"]),
    "gradients with 0.1 % noise": (stepping(noisy), ["clip"]),
    "clip of HASS a thousandth": (clipped("value", 1e-3), ["clip"]),
}
RUNS = [
    *((fault, name) for fault in list(FAULTS)[:-1] for name in ("eagle3_fp32_k1", "eagle3_bf16ds_k3")),
    *(("none", "hass_fp32_k1"), ("clip of HASS a thousandth", "hass_fp32_k1")),
]


@pytest.mark.parametrize(("fault", "name"), RUNS)
def test_every_fault_is_named_by_its_check(
    fault: str, name: str, cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by no other."""
    plant, named = FAULTS[fault]
    plant(monkeypatch)
    case = cases[name]
    run = run_port(case, tmp_path, max_steps=STEPS)
    table = table_for(case.dtype, by_dtype=TABLES)
    evidence = Evidence(case, load_recorded(case), run.trace, table, run, oracle=lambda: run.trace)
    rows = run_checks(evidence, only=CHECKS)
    assert {row.check for row in rows} == set(CHECKS)
    assert list(dict.fromkeys(row.check for row in rows if row.status is Status.FAILED)) == named
