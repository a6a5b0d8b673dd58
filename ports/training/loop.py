"""The training loop of the ports: the prototypes' passes, with accumulation that equals the big batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ports.errors import InputError
from ports.training.checkpoint import generators
from ports.training.checkpoint.generators import Generators
from ports.training.checkpoint.stop import StoppedError, StopRequest
from ports.training.data.batches import Batch
from ports.training.data.pass_clock import PassClock, PassTimes
from ports.training.loss.normalisation import build_normalisation
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
    ``keeper`` saves.
    """

    settings: TrainingSettings
    objective: nn.Module
    loader: DataLoader[Any]
    num_files: int
    clip: Clip
    keeper: Keeper


class Keeper(Protocol):
    """Saves a loop's state; see :class:`ports.training.checkpoint.keeper.CheckpointKeeper`."""

    def after_step(self, loop: Loop) -> None: ...

    def after_pass(self, loop: Loop, epoch: int, loss: float | None) -> None: ...

    def on_stop(self, loop: Loop) -> Path: ...


@dataclass
class Replay:
    """How to come back into a pass: the generators at its start, and where they must be after the batches since."""

    start: Generators
    now: Generators
    file: Path


class Loop:
    """State of one run: the prepared objects and the running counts.

    ``epoch``, ``totals``, ``micro_batch`` and ``steps`` say where it stands; ``pass_start`` are the generators from the
    start of the pass, from which a resumed run draws the same batches again.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, observer: Observer) -> None:
        self.plan, self.accelerator, self.observer = plan, accelerator, observer
        total, warmup = plan.settings.schedule(plan.num_files)
        optimizer = build_optimizer(plan.objective, plan.settings.lr)
        schedule = build_schedule(optimizer, total, warmup)
        prepared = accelerator.prepare(plan.objective, optimizer, plan.loader, schedule)
        self.module, self.optimizer, self.loader, self.schedule = prepared
        self.objective: Any = accelerator.unwrap_model(self.module)
        self.objective.after_cast()
        self.micro_batch = self.steps = self.epoch = 0
        self.totals, self.pass_start, self.clock = PassTotals(), generators.capture(), PassClock()
        self.replay: Replay | None = None
        self.stop = StopRequest()
        self.normalisation = build_normalisation(plan.settings.loss_normalisation, accelerator)
        _refuse_foreign_accumulation(accelerator)
        _refuse_no_batch(plan)

    def run(self) -> nn.Module:
        """Train to the end.

        Raises:
            StoppedError: a signal asked for it; everything is saved.
        """
        with self.stop.on_signals():
            for _ in self.optimizer_steps():
                pass
        return self.plan.objective

    def optimizer_steps(self) -> Iterator[int]:
        """Train, yielding the number of optimizer steps done after each; abandoning the iterator stops the run."""
        self._say(f"training on {self.plan.num_files} examples total")
        self.observer.started(self.objective, self.optimizer)
        while self.epoch <= self.plan.settings.epoch and not self._enough():
            yield from self._run_pass()
        self.observer.finished(self.objective)

    def _run_pass(self) -> Iterator[int]:
        self.module.train()
        epoch, ended = self.epoch, True
        for window in self._windows():
            self._optimizer_step(window)
            self.plan.keeper.after_step(self)
            yield self.steps
            self._stop_if_asked()
            if self._enough():
                ended = False
                break
        totals = self._print_totals()
        self._report_times(self.clock.read())
        if ended:
            self._next_pass()
        self.plan.keeper.after_pass(self, epoch, totals.mean if ended else None)

    def _next_pass(self) -> None:
        self.epoch, self.totals = self.epoch + 1, PassTotals()
        self.pass_start = self.generators()

    def _print_totals(self) -> PassTotals:
        local = self.totals
        correct, rows, skipped = (self._sum_over_processes(n) for n in (local.correct, local.rows, local.skipped))
        totals = PassTotals(local.loss, local.batches, correct, rows, skipped)
        for line in totals.lines(self.epoch, self.plan.settings.epoch):
            self._say(line)
        return totals

    def _report_times(self, own: PassTimes) -> None:
        """To the observer; to terminal and trackers when asked, of the process that waited longest."""
        self.observer.timed(self.epoch, own)
        if not self.plan.settings.report_data_wait:
            return
        every = gather_object([own])
        times = max(every, key=lambda each: each.waited)
        self._say(times.line())
        self.accelerator.log(times.logged(), step=self.micro_batch)

    def _windows(self) -> Iterator[list[Batch]]:
        """The pass in lists of accumulated micro-batches; the last may be shorter."""
        batches = self._batches()
        while window := list(islice(batches, self.plan.settings.gradient_accumulation_steps)):
            yield window

    def _batches(self) -> Iterator[Batch]:
        """What is left of the pass. Batches that a resumed run has seen are drawn again and dropped."""
        replay, self.replay = self.replay, None
        if replay is not None:
            generators.restore(replay.start, generators.sampler_generator(self.loader))
        self.pass_start = self.generators()
        self.clock = PassClock()
        show = self.plan.settings.progress and self.accelerator.is_local_main_process
        batches = iter(tqdm(self.loader, dynamic_ncols=True, disable=not show))
        for _ in islice(batches, self.totals.batches):
            pass
        if replay is not None:
            self._check_replay(replay)
        return self.clock.watch(batches)

    def _check_replay(self, replay: Replay) -> None:
        """The generators must be where they were when the checkpoint was saved: then so is everything drawn."""
        own = self.generators()
        if not all(torch.equal(own[name], replay.now[name]) for name in ("torch", "sampler") if name in own):
            found = f"another state after replaying {self.totals.batches} batches"
            raise InputError(replay.file, "torch", found, "the saved one: the same records, releases and loader")
        generators.restore(replay.now, generators.sampler_generator(self.loader))

    def generators(self) -> Generators:
        """The random generators of this process as they are now."""
        return generators.capture(generators.sampler_generator(self.loader))

    def _stop_if_asked(self) -> None:
        asked = self.stop.requested
        if self.accelerator.num_processes > 1:
            asked = self._sum_over_processes(int(asked)) > 0
        if asked:
            raise StoppedError(self.steps, self.plan.keeper.on_stop(self))

    def _optimizer_step(self, window: list[Batch]) -> None:
        self.optimizer.zero_grad()
        files = [self._take_visits(batch) for batch in window]
        window_rows = self.normalisation.rows(torch.stack([self.objective.rows(batch) for batch in window]).sum(0))
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            self.observer.batch(self.micro_batch, batch)
            with self._anomalies(files[position]):
                outcome = self._forward_backward(batch, window_rows, last)
            self._refuse_no_number(outcome, files[position])
            self.observer.gradients(self.micro_batch, self.objective)
            lr_used = self._lr()
            grad_norm = self._update() if last else None
            self._record(batch, outcome, lr_used, grad_norm, last)
            self.micro_batch += 1
        self.steps += 1

    def _forward_backward(self, batch: Batch, window_rows: Tensor, last: bool) -> Any:
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            outcome = self.module(batch, window_rows)
            self.observer.outcome(self.micro_batch, outcome)
            self.accelerator.backward(self.normalisation.loss(outcome.backward_loss))
        return outcome

    def _take_visits(self, batch: Any) -> list[str]:
        """The files behind a batch's rows; what was skipped is said by the process that met it; both are counted."""
        for reason in batch.pop("skipped", ()):
            print(f"skipped {reason}", flush=True)
            self.totals.skipped += 1
        self.clock.count(batch["attention_mask"])
        return list(batch.pop("files", ()))

    def _refuse_no_number(self, outcome: Any, files: list[str]) -> None:
        """NaN in a loss would be in every weight after the step that is not taken now."""
        if not bool(torch.isfinite(outcome.loss)):
            found = f"{float(outcome.loss)} at optimizer step {self.steps + 1}, micro-batch {self.micro_batch}"
            raise InputError(", ".join(files), "loss", found, "a finite number; no step was taken with it")

    @contextlib.contextmanager
    def _anomalies(self, files: list[str]) -> Iterator[None]:
        """What ``--debug`` finds in a backward names the samples, as :meth:`_refuse_no_number` does."""
        try:
            yield
        except RuntimeError as error:
            if not torch.is_anomaly_enabled() or "returned nan values" not in str(error):
                raise
            found = f"{error} at optimizer step {self.steps + 1}, micro-batch {self.micro_batch}"
            raise InputError(", ".join(files), "gradient", found, "finite numbers; no step was taken") from error

    def _update(self) -> float | None:
        grad_norm = self.plan.clip(self.accelerator, self.module)
        self.optimizer.step()
        self.schedule.step()
        return grad_norm

    def _record(self, batch: Batch, local: Any, lr_used: float, grad_norm: float | None, stepped: bool) -> None:
        outcome = self.normalisation.report(local, self.objective, batch)
        hits, loss, lr_after = outcome.hits, outcome.loss.item(), self._lr()
        self.totals.add(loss, local.hits)
        logged = log_entry(lr_after, loss, hits, getattr(outcome, "extra", None))
        if logged:
            self.accelerator.log(logged, step=self.micro_batch)
        record = StepRecord(
            self.micro_batch,
            self.epoch,
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
