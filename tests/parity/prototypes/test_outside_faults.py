"""Faults planted from outside into optimizer, clipping and schedule of the ports: each is named, in both precisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import ports.eagle3.train
import ports.training.loop
from parity import fixtures
from parity.checks import run_checks
from parity.evidence import Evidence
from parity.prototypes.case import Case, read_case
from parity.prototypes.pair import TABLES
from parity.prototypes.port import run_port
from parity.prototypes.recorded import load_recorded
from parity.tolerances import table_for
from parity.verdict import Status

CHECKS = ("clip", "schedule", "optimizer_step")
STEPS = 12
CASES = {"fp32": "eagle3_fp32_k1", "bf16": "eagle3_bf16ds_k3"}

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


def stepping(around: Callable[[Any, int, Callable[[], None]], None]) -> Fault:
    """``around(optimizer, number, step)`` in the place of every AdamW step, counted from 0."""

    def plant(patch: Patch) -> None:
        original, count = torch.optim.AdamW.step, iter(range(10**6))

        def step(self: Any, closure: Any = None) -> None:
            around(self, next(count), lambda: original(self))

        patch.setattr(torch.optim.AdamW, "step", step)

    return plant


def grouped(first: int = 0, **changes: Any) -> Fault:
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


def looser(patch: Patch) -> None:
    original = Accelerator.clip_grad_norm_
    patch.setattr(
        Accelerator, "clip_grad_norm_", lambda self, parameters, limit: original(self, parameters, limit * 1.02)
    )


def scheduled(change: Callable[[Callable[[int], float], int], float]) -> Fault:
    """Another factor at step n than the schedule's own."""

    def plant(patch: Patch) -> None:
        original = ports.training.loop.build_schedule

        def build(optimizer: Any, total: int, warmup: int) -> Any:
            factor = original(optimizer, total, warmup).lr_lambdas[0]
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: change(factor, n))

        patch.setattr(ports.training.loop, "build_schedule", build)

    return plant


FAULTS: dict[str, tuple[Fault, str]] = {
    "rate 3 % low from step 2": (grouped(first=1, lr=lambda rate: 0.97 * rate), "optimizer_step"),
    "decay off": (grouped(weight_decay=0.0), "optimizer_step"),
    "beta2 0.951": (grouped(betas=(0.9, 0.951)), "optimizer_step"),
    "eps 1e-6": (grouped(eps=1e-6), "optimizer_step"),
    "clip 2 % off": (looser, "clip"),
    "schedule one step late": (scheduled(lambda factor, n: factor(max(0, n - 1))), "schedule"),
    "rate 10 % low after step 8": (scheduled(lambda factor, n: factor(n) * (0.9 if n >= 8 else 1.0)), "schedule"),
    "every tenth step skipped": (stepping(skipping), "optimizer_step"),
    "gradients with 0.1 % noise": (stepping(noisy), "clip"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return read_case(fixtures.RECORDINGS / CASES[request.param])


def failed(case: Case, folder: Path) -> list[str]:
    """The checks with a failed row of their own."""
    run = run_port(case, folder, max_steps=STEPS)
    table = table_for(case.dtype, by_dtype=TABLES)
    evidence = Evidence(case, load_recorded(case), run.trace, table, run, oracle=lambda: run.trace)
    rows = run_checks(evidence, only=CHECKS)
    assert {row.check for row in rows} == set(CHECKS)
    return list(dict.fromkeys(row.check for row in rows if row.status is Status.FAILED))


def test_the_port_as_it_is_passes(case: Case, tmp_path: Path) -> None:
    assert failed(case, tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_by_its_check(
    fault: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, named = FAULTS[fault]
    plant(monkeypatch)
    assert failed(case, tmp_path) == [named]


def test_clipping_of_hass_is_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = read_case(fixtures.RECORDINGS / "hass_fp32_k1")
    assert failed(case, tmp_path / "right") == []
    original = Accelerator.clip_grad_value_
    monkeypatch.setattr(Accelerator, "clip_grad_value_", lambda self, given, limit: original(self, given, 1e-3 * limit))
    assert failed(case, tmp_path / "wrong") == ["clip"]
