"""The training loop of the ports: the prototypes' passes, with accumulation that equals the big batch."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ports.errors import InputError
from ports.progress import Work
from ports.training.data import Batch, RecordDataset, in_float32
from ports.training.generators import Generators, Replay, generators_of, put_back
from ports.training.launch import host_group, refuse_foreign_accumulation
from ports.training.masks import moved
from ports.training.metrics import Acceptance, PassClock, PassTotals, fetch, log_entry, times_line
from ports.training.no_effect import no_number, refuse_unreached, unmoved, without_effect
from ports.training.objective import Normalisation
from ports.training.observer import Observer, StepRecord
from ports.training.optimizer import build_optimizer, build_schedule
from ports.training.settings import TrainingSettings
from ports.training.shards import sums_of_bits
from ports.training.stop import StoppedError, StopRequest
from ports.training.window import Window

Clip = Callable[[Accelerator, nn.Module], "Tensor | None"]
"""Clips the gradients of a module in place; returns the norm it found, if it took one."""


class Saves(Protocol):
    """What saves a run: :class:`ports.training.checkpoint_manager.CheckpointManager`."""

    def after_step(self, loop: Loop) -> None: ...
    def after_pass(self, loop: Loop, epoch: int, loss: float | None) -> None: ...
    def on_stop(self, loop: Loop) -> Path: ...
    @property
    def newest(self) -> Path | None: ...
    def write_draft(self, loop: Loop) -> Path: ...


class Looks(Protocol):
    """What looks at the draft on other records while it is trained: :class:`ports.training.validation.Validation`."""

    share: RecordDataset | None
    last: Acceptance | None

    def is_due(self, steps: int) -> bool: ...
    def after_step(self, loop: Loop) -> None: ...
    def after_pass(self, loop: Loop) -> None: ...


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
    checkpoint_manager: Saves
    validation: Looks | None = None


class Loop:
    """State of one run: the prepared objects and the running counts.

    ``epoch``, ``totals``, ``micro_batch`` and ``steps`` say where it stands; ``pass_start`` are the generators from the
    start of the pass, from which a resumed run draws the same batches again. ``learned`` says whether a row of the pass
    was in the loss on any process, ``moved`` whether the weights were seen to move, ``owes`` whether the last step is
    still to be validated, ``cut_short`` whether a pass that ``--max-steps`` ends is still to be saved.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator, observer: Observer) -> None:
        self.plan, self.accelerator, self.observer = plan, accelerator, observer
        total, warmup = plan.settings.schedule(plan.num_files, accelerator.num_processes)
        optimizer = build_optimizer(plan.objective, plan.settings.lr)
        schedule = build_schedule(optimizer, total, warmup)
        prepared = accelerator.prepare(plan.objective, optimizer, plan.loader, schedule)
        self.module, self.optimizer, self.loader, self.schedule = prepared
        self.loader.device = None  # a batch goes there when it is its turn, not with all of its window
        self.objective: Any = accelerator.unwrap_model(self.module, keep_torch_compile=False)
        self.objective.after_cast()
        self.micro_batch = self.steps = self.epoch = 0
        self.totals, self.pass_start, self.clock = PassTotals(), self.generators(), PassClock()
        self.learned = self.moved = self.owes = self.cut_short = False
        self.replay: Replay | None = None
        self.stop, self._group = StopRequest(), host_group()
        together = plan.settings.loss_normalisation == "global" and accelerator.num_processes > 1
        self.normalisation = Normalisation(accelerator, together)
        refuse_foreign_accumulation(accelerator)

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
        """Train, yielding the number of optimizer steps done after each; abandoning the iterator stops the run.

        Raises:
            InputError: a loss or gradient that is no number, on all processes before the step; weights that do not
                move; a pass without a row in the loss.
        """
        self.accelerator.print(f"processes: {self.accelerator.num_processes}, on {self.accelerator.device.type}")
        self.say(f"training on {self.plan.num_files} examples total")
        self.observer.started(self.objective, self.optimizer)
        with self._work() as self.work:
            while self.epoch <= self.plan.settings.epoch and (self.cut_short or not self._enough()):
                yield from self._run_pass()
        self.observer.finished(self.objective)

    def _work(self) -> Work:
        """What is shown: optimizer steps of all passes, those of before a resume among them."""
        settings = self.plan.settings
        total = settings.epochs * math.ceil(len(self.loader) / settings.gradient_accumulation_steps)
        shown = settings.progress and self.accelerator.is_local_main_process
        return Work("training: steps", min(total, settings.max_steps or total), self.steps, shown)

    def _run_pass(self) -> Iterator[int]:
        self.module.train()
        self.work.what = f"training: pass {self.epoch + 1} of {self.plan.settings.epochs}, steps"
        ended, self.cut_short = not self._enough(), False
        if self.owes:
            self._after_step()
        for window in self._windows() if ended else self._batches_seen():
            self._optimizer_step(window)
            self.work.at(self.steps)
            self._after_step()
            yield self.steps
            self.stop_if_asked()
            if self._enough():
                ended = False
                break
        totals = self._print_totals()
        if self.plan.settings.report_data_wait:
            self._report_times()
        if not self.learned and (ended or self.epoch == 0):  # one cut short goes on from an earlier pass's weights
            raise without_effect(self.plan.settings.tmpdir, totals)
        if self.plan.validation is not None:
            self.plan.validation.after_pass(self)
        epoch = self.epoch
        if ended:
            self._next_pass()
        self.plan.checkpoint_manager.after_pass(self, epoch, totals.mean if ended else None)

    def _after_step(self) -> None:
        """What is due after an optimizer step; a run that is asked to stop saves first, and owes it to the resumed."""
        validation = self.plan.validation
        self.owes = validation is not None and validation.is_due(self.steps)
        self.stop_if_asked()
        if validation is not None and self.owes:
            validation.after_step(self)
        self.owes = False
        if self.learned or self.epoch > 0:
            self.plan.checkpoint_manager.after_step(self)

    def _next_pass(self) -> None:
        self.epoch, self.totals, self.learned = self.epoch + 1, PassTotals(), False
        self.pass_start = self.generators()

    def _print_totals(self) -> PassTotals:
        totals = PassTotals.together(gather_object([self.totals]))
        for line in totals.lines(self.epoch, self.plan.settings.last_pass):
            self.say(line)
        if totals.empty:  # the prototypes train on them, and do not say so
            self.accelerator.print(f"Without a row in the loss: {totals.empty} records")
        return totals

    def _report_times(self) -> None:
        """Of the process that waited longest."""
        times = max(gather_object([self.clock.read()]), key=lambda each: each["pass/data_wait"])
        self.say(times_line(times))
        self.accelerator.log(times, step=self.micro_batch)

    def _windows(self) -> Iterator[deque[Batch]]:
        """The accumulated micro-batches of the pass, on the host; the last may be fewer. They are taken out in turn."""
        batches = self._batches()
        while window := deque(islice(batches, self.plan.settings.gradient_accumulation_steps)):
            yield window

    def _batches_seen(self) -> tuple[()]:
        """Of a pass that was stopped with its last step done: no more than where its generators are is wanted."""
        self._batches()
        return ()

    def _batches(self) -> Iterator[Batch]:
        """What is left of the pass. Batches that a resumed run has seen are drawn again and dropped."""
        replay, self.replay = self.replay, None
        if replay is not None:
            self.put_back(replay.start, replay.file)
        self.pass_start = self.generators()
        self.clock = PassClock()
        dataset: Any = self.plan.loader.dataset
        dataset.start_pass(self.epoch, self.totals.batches, self.plan.settings.bs, self.totals.skipped > 0)
        batches = iter(self.loader)
        for _ in islice(batches, self.totals.batches):
            pass
        if replay is not None:
            self._check_replay(replay)
        return self.clock.watch(batches)

    def _check_replay(self, replay: Replay) -> None:
        """The generators must be where they were when the checkpoint was saved: then so is everything drawn."""
        own = self.generators()
        self.put_back(replay.now, replay.file)
        if not all(torch.equal(own[name], replay.now[name]) for name in own if name != "cuda"):
            found = f"another state after replaying {self.totals.batches} batches"
            raise InputError(replay.file, "torch", found, "the saved one: the same records, releases and loader")

    def generators(self) -> Generators:
        """Every random generator that this process draws from, as it is now."""
        return generators_of(self.loader)

    def put_back(self, state: Generators, file: Path = Path("generators")) -> None:
        """Put every generator back to where :meth:`generators` found it; see :func:`put_back`."""
        put_back(self.loader, state, file)

    def stop_if_asked(self) -> None:
        """Every process must ask.

        Raises:
            StoppedError: a signal asked any of them to stop; everything is saved.
        """
        asked = self.stop.requested
        if self.accelerator.num_processes > 1:
            asked = self._sum_over_processes(int(asked)) > 0
        if asked:
            raise StoppedError(self.steps, self.plan.checkpoint_manager.on_stop(self))

    def _optimizer_step(self, batches: deque[Batch]) -> None:
        self.optimizer.zero_grad()
        rate = self._lr()
        before = sums_of_bits(self.objective) if not self.moved and rate > 0 else None
        window = self._window(batches)
        while batches:
            self._micro_batch(batches.popleft(), window, not batches, before is not None)
        self.steps += 1
        self.learned = self.learned or window.teaches
        if before is not None and window.teaches:
            self._see_moved(before, rate)

    def _window(self, batches: Iterable[Batch]) -> Window:
        files = [self._take_visits(batch) for batch in batches]
        rows = torch.stack([self.objective.rows(batch) for batch in batches]).sum(0)
        rows = rows.to(self.accelerator.device, non_blocking=True)
        return Window(files, rows, self.normalisation.sum(rows))

    def _micro_batch(self, batch: Batch, window: Window, last: bool, unmoved: bool) -> None:
        """Nothing of it is held when this returns; the host waits for the device once, before the step is taken."""
        batch = in_float32(moved(batch, self.accelerator.device))
        self.observer.batch(self.micro_batch, batch)
        with self._anomalies(window.files[len(window.losses)]):
            outcome = self._forward_backward(batch, window, last)
        self.observer.gradients(self.micro_batch, self.objective)
        lr_used, told = self._lr(), self._told(batch, outcome, window, last)
        if last:
            self._update(window, told, unmoved)
        self._record(told, lr_used, last)
        self.micro_batch += 1

    def forward(self, *inputs: Any) -> Any:
        """The module's in the precision of the run, which accelerate does not see to where FSDP2 shards."""
        with self.accelerator.autocast():
            return self.module(*inputs)

    def _forward_backward(self, batch: Batch, window: Window, last: bool) -> Any:
        self.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            outcome = self.forward(batch, window.divisor)
            self.observer.outcome(self.micro_batch, outcome)
            window.losses.append(outcome.loss)
            if last and self._agrees_early:
                self._agree(window, *self._seen(window).tolist())
            self.accelerator.backward(self.normalisation.loss(outcome.backward_loss))
        return outcome

    @property
    def _agrees_early(self) -> bool:
        """Before the backward: DeepSpeed's takes the step, and ``--debug`` would blame the gradient of such a loss."""
        return self.accelerator.distributed_type is DistributedType.DEEPSPEED or torch.is_anomaly_enabled()

    def _seen(self, window: Window) -> Tensor:
        """[2] int64, of all processes: losses that are NaN or Inf, and rows in the loss."""
        seen: Tensor = self.accelerator.reduce(window.seen(), "sum")
        return seen

    def _agree(self, window: Window, count: int, rows: int) -> None:
        """All processes see whether any has a row, and stop together if a loss of any is NaN or Inf."""
        window.teaches = rows > 0
        if count:
            found = window.wrong_losses(self.micro_batch + 1 - len(window.losses), self._here())
            raise no_number("loss", gather_object(found))

    def _see_moved(self, before: Tensor, rate: float) -> None:
        self.moved = self._sum_over_processes(int(not torch.equal(before, sums_of_bits(self.objective)))) > 0
        if not self.moved:
            raise unmoved(self.steps, rate)

    def _here(self) -> str:
        return f"optimizer step {self.steps + 1}"

    def _take_visits(self, batch: Any) -> list[str]:
        """The files behind a batch's rows; what teaches nothing is said by the process that met it, and counted."""
        for why in batch.pop("skipped", ()):
            print(f"skipped {why}", flush=True)
            self.totals.skipped += 1
        for file in batch.pop("empty", ()):
            print(f"no row in the loss: {file}", flush=True)
            self.totals.empty += 1
        self.clock.count(batch["attention_mask"])
        return list(batch.pop("files", ()))

    @contextlib.contextmanager
    def _anomalies(self, files: list[str]) -> Iterator[None]:
        """What ``--debug`` finds in a backward names the samples."""
        try:
            yield
        except RuntimeError as error:
            if not torch.is_anomaly_enabled() or "returned nan values" not in str(error):
                raise
            raise no_number(
                "gradient", [(files, f"{error} at {self._here()}, micro-batch {self.micro_batch}")]
            ) from error

    def _told(self, batch: Batch, local: Any, window: Window, last: bool) -> dict[str, Any]:
        """The numbers of a micro-batch, and of the window that it closes, with gradients clipped: read in one go."""
        outcome = self.normalisation.report(local, self.objective, batch)
        tensors = {"loss": outcome.loss, "step_losses": outcome.step_losses, **vars(outcome.hits), **outcome.extra}
        tensors |= {"own_correct": local.hits.correct, "own_rows": local.hits.rows}
        if last:
            norm = self.plan.clip(self.accelerator, self.module)
            found = {} if norm is None else {"grad_norm": torch.as_tensor(norm, device=self.accelerator.device)}
            tensors |= {"seen": self._seen(window), **found}
        return fetch(tensors)

    def _update(self, window: Window, told: dict[str, Any], unmoved: bool) -> None:
        self._agree(window, *told["seen"])
        if unmoved and window.teaches and self.accelerator.distributed_type is not DistributedType.DEEPSPEED:
            refuse_unreached(self.objective)  # DeepSpeed keeps gradients in a place of its own
        grad_norm = told.get("grad_norm")
        if grad_norm is not None and not math.isfinite(grad_norm):  # the same on every process
            files = [file for files in window.files for file in files]
            raise no_number("gradient norm", gather_object([(files, f"{grad_norm} at {self._here()}")]))
        self.optimizer.step()
        self.schedule.step()

    def _record(self, told: dict[str, Any], lr_used: float, stepped: bool) -> None:
        self.totals.add(told["loss"], told["own_correct"], told["own_rows"])
        lr_after = self._lr()
        logged = log_entry(lr_after, told)
        if logged:
            self.accelerator.log(logged, step=self.micro_batch)
        losses, top = (tuple(told[name]) for name in ("step_losses", "top"))
        taken = lr_used, lr_after, told.get("grad_norm"), told["correct"], told["rows"], top, stepped, logged
        self.observer.stepped(StepRecord(self.micro_batch, self.epoch, told["loss"], losses, *taken), self.objective)

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _enough(self) -> bool:
        return self.plan.settings.max_steps is not None and self.steps >= self.plan.settings.max_steps

    def _sum_over_processes(self, count: int) -> int:
        """On the host, which does not wait for its device."""
        if self._group is None:
            return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "sum"))
        counts = torch.tensor(count)
        torch.distributed.all_reduce(counts, group=self._group)
        return int(counts)

    def say(self, line: str) -> None:
        """Print it, once, and tell the observer."""
        self.accelerator.print(line)
        self.observer.printed(line)
