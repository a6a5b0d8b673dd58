"""The training loop of the ports: the prototypes' passes, with accumulation that equals the big batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ports.errors import InputError
from ports.training.batches import Batch
from ports.training.metrics import PassTotals, log_entry
from ports.training.observer import Observer, StepRecord
from ports.training.optimizer import build_optimizer, build_schedule
from ports.training.settings import TrainingSettings

Clip = Callable[[Accelerator, nn.Module], "float | None"]
"""Clips the gradients of a module in place; returns the norm it found, if it took one."""


@dataclass
class Plan:
    """One training run: what to train, on what, and what to do after a pass.

    ``objective(batch, window_rows)`` returns an outcome with ``backward_loss``, ``loss``, ``step_losses`` and ``hits``;
    ``objective.rows(batch)`` counts the rows in the loss; ``objective.after_cast()`` runs once everything is prepared.
    """

    settings: TrainingSettings
    objective: nn.Module
    loader: DataLoader[Any]
    num_files: int
    clip: Clip
    after_pass: Callable[[Accelerator, nn.Module, int], None]


class Loop:
    """State of one run: the prepared objects and the running counts."""

    def __init__(self, plan: Plan, accelerator: Accelerator, observer: Observer) -> None:
        self.plan, self.accelerator, self.observer = plan, accelerator, observer
        total, warmup = plan.settings.schedule(plan.num_files)
        optimizer = build_optimizer(plan.objective, plan.settings.lr)
        schedule = build_schedule(optimizer, total, warmup)
        prepared = accelerator.prepare(plan.objective, optimizer, plan.loader, schedule)
        self.module, self.optimizer, self.loader, self.schedule = prepared
        self.objective: Any = accelerator.unwrap_model(self.module)
        self.objective.after_cast()
        self.micro_batch = self.steps = 0
        _refuse_foreign_accumulation(accelerator)
        _refuse_no_batch(plan)

    def run(self) -> nn.Module:
        """Train to the end."""
        for _ in self.optimizer_steps():
            pass
        return self.plan.objective

    def optimizer_steps(self) -> Iterator[int]:
        """Train, yielding the number of optimizer steps done after each; abandoning the iterator stops the run."""
        self._say(f"training on {self.plan.num_files} examples total")
        self.observer.started(self.objective, self.optimizer)
        for epoch in range(self.plan.settings.epoch + 1):
            yield from self._run_pass(epoch)
            if self._enough():
                break
        self.observer.finished(self.objective)

    def _run_pass(self, epoch: int) -> Iterator[int]:
        self.module.train()
        totals = PassTotals()
        for window in self._windows():
            self._optimizer_step(epoch, window, totals)
            yield self.steps
            if self._enough():
                break
        correct, rows = self._sum_over_processes(totals.correct), self._sum_over_processes(totals.rows)
        for line in PassTotals(totals.loss, totals.batches, correct, rows).lines(epoch, self.plan.settings.epoch):
            self._say(line)
        self.plan.after_pass(self.accelerator, self.objective, epoch)

    def _windows(self) -> Iterator[list[Batch]]:
        """The pass in lists of accumulated micro-batches; the last may be shorter."""
        show = self.plan.settings.progress and self.accelerator.is_local_main_process
        batches = iter(tqdm(self.loader, dynamic_ncols=True, disable=not show))
        while window := list(islice(batches, self.plan.settings.gradient_accumulation_steps)):
            yield window

    def _optimizer_step(self, epoch: int, window: list[Batch], totals: PassTotals) -> None:
        self.optimizer.zero_grad()
        window_rows = torch.stack([self.objective.rows(batch) for batch in window]).sum(0)
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            self.observer.batch(self.micro_batch, batch)
            outcome = self._forward_backward(batch, window_rows, last)
            self.observer.gradients(self.micro_batch, self.objective)
            lr_used = self._lr()
            grad_norm = self._update() if last else None
            self._record(epoch, outcome, totals, lr_used, grad_norm, last)
            self.micro_batch += 1
        self.steps += 1

    def _forward_backward(self, batch: Batch, window_rows: Tensor, last: bool) -> Any:
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            outcome = self.module(batch, window_rows)
            self.observer.outcome(self.micro_batch, outcome)
            self.accelerator.backward(outcome.backward_loss)
        return outcome

    def _update(self) -> float | None:
        grad_norm = self.plan.clip(self.accelerator, self.module)
        self.optimizer.step()
        self.schedule.step()
        return grad_norm

    def _record(
        self, epoch: int, outcome: Any, totals: PassTotals, lr_used: float, grad_norm: float | None, stepped: bool
    ) -> None:
        hits, loss, lr_after = outcome.hits, outcome.loss.item(), self._lr()
        totals.add(loss, hits)
        logged = log_entry(lr_after, loss, hits, getattr(outcome, "extra", None))
        if logged:
            self.accelerator.log(logged, step=self.micro_batch)
        record = StepRecord(
            self.micro_batch,
            epoch,
            loss,
            tuple(outcome.step_losses.tolist()),
            lr_used,
            lr_after,
            grad_norm,
            int(hits.correct),
            int(hits.rows),
            tuple(hits.top.tolist()),
            stepped,
            logged,
        )
        self.observer.stepped(record, self.objective)

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _enough(self) -> bool:
        return self.plan.settings.max_steps is not None and self.steps >= self.plan.settings.max_steps

    def _sum_over_processes(self, count: int) -> int:
        counts = torch.tensor(count, device=self.accelerator.device)
        return int(self.accelerator.reduce(counts, "sum"))

    def _say(self, line: str) -> None:
        self.accelerator.print(line)
        self.observer.printed(line)


def _refuse_foreign_accumulation(accelerator: Accelerator) -> None:
    """A DeepSpeed config that accumulates by itself would divide the loss a second time."""
    if accelerator.gradient_accumulation_steps != 1:
        found = accelerator.gradient_accumulation_steps
        expected = "1 or auto: accumulate with --gradient-accumulation-steps"
        raise InputError("DeepSpeed config", "gradient_accumulation_steps", found, expected)


def _refuse_no_batch(plan: Plan) -> None:
    """Incomplete batches are dropped, so that fewer records than one batch would train nothing."""
    if plan.num_files < plan.settings.bs:
        raise InputError(plan.settings.tmpdir, "records", plan.num_files, f"at least bs = {plan.settings.bs}")
