"""What can produce a trace of a case: callables that build and step a module, a command, a folder written before.

A side is any object with a ``name`` and ``trace(case)``, a context manager that gives a :class:`Run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim import Optimizer

from parity import ranks as processes
from parity.allowed import Disturbance, Spread, autocast_seen, computed_in, move_module, moved
from parity.calls import copy_weights, dtype_of, gradients_of, state_of
from parity.case import STEPS, Batch, Case
from parity.contexts import Enter, enclose, entered
from parity.environment import describe, deterministic
from parity.errors import InputError
from parity.observe import Taps, drawing, observe
from parity.plants import Ground
from parity.samplers import keep_samples
from parity.setup import (
    groups_of,
    optimizer_for,
    optimizers_in,
    pattern_loss,
    rate_of,
    settings,
    setup_of,
    varied,
    with_first_rates,
)
from parity.step import Clip, Rule, StepAuditor, global_norm
from parity.trace import Point, StepAudit, Trace

Found = TypeVar("Found")


@dataclass(frozen=True)
class Run:
    """A trace, the side as it can be run again, and the case where the run itself fixed something of it.

    ``left`` is what it left behind beside the trace, of a pair's own kind, for that pair's checks. ``more`` measures
    what rounding does to it by more draws than its trace holds.
    """

    trace: Trace
    alive: Rerunnable | None = None
    case: Any = None
    left: Any = None
    more: Callable[[], Spread] | None = None


class AnySide(Protocol):
    """A side of a pair."""

    @property
    def name(self) -> str: ...

    def trace(self, case: Any) -> AbstractContextManager[Run]: ...


@dataclass(frozen=True)
class Side:
    """Plain callables. Only ``build`` is needed.

    Args:
        build: a fresh module, in the mode (train, eval) and the dtype it is to be compared in.
        loss: a scalar of the module and a batch.
        optimizer: from the parameters that require a gradient.
        schedule: a learning rate scheduler of the optimizer, stepped after it.
        step: what happens between backward and the next batch; ``optimizer.step()`` by default. A ``Clip``: torch clips
            so before it, and every step is held to that.
        save, load: into a folder and back from it; ``save_pretrained`` and ``from_pretrained`` where the module has
            them, else its state dict as safetensors.
        taps: functions to tap from outside, see :data:`parity.observe.Taps`.
        clip: what a ``step`` of your own is to do to the gradients, so that every step can be held to it.
        rate: the learning rate of optimizer step n = 0, 1, ... as a formula, likewise.
        backward: False for a side that is only run forward.
        name: in reports.
        ranks: processes that it runs on, each with its ``share`` of every batch, see :mod:`parity.ranks`.
        wrap: what each makes of the module: ``ddp``, ``fsdp2``, or a function to what ``loss`` is given.
        share: a batch, a rank and the number of ranks to the rank's part.
        reduce: the whole loss is the ``mean`` of the ranks' losses, or their ``sum``.
        one_seed: all draw alike while they train; else each has a seed of its own.
        ground: of a planted fault.
        contexts: that whatever it runs runs in, see :func:`parity.in_context`.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor] = pattern_loss
    optimizer: Callable[[list[nn.Parameter]], Optimizer] = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)
    schedule: Callable[[Optimizer], Any] | None = None
    step: Callable[[nn.Module, Optimizer], None] | Clip = lambda module, optimizer: optimizer.step()
    save: Callable[[nn.Module, Path], None] | None = None
    load: Callable[[Path], nn.Module] | None = None
    taps: Taps = field(default_factory=dict)
    clip: Clip | None = None
    rate: Callable[[int], float] | None = None
    backward: bool = True
    name: str = ""
    ranks: int = 1
    wrap: processes.Wrap = "ddp"
    share: Callable[[Batch, int, int], Batch] = processes.by_samples
    reduce: str = "mean"
    one_seed: bool = False
    ground: Ground | None = None
    contexts: Sequence[Enter] = ()

    def __post_init__(self) -> None:
        enclose(self, self.contexts)

    @property
    def clips(self) -> Clip | None:
        """What every step's gradients are held to."""
        return self.step if isinstance(self.step, Clip) else self.clip

    def make_step(self, module: nn.Module, optimizer: Any) -> None:
        """What ``step`` says; a ``Clip`` clips by torch before the optimizer steps."""
        with entered(self.contexts):
            if not isinstance(self.step, Clip):
                return self.step(module, optimizer)
            self.step.by_torch(module.parameters())
            optimizer.step()
        return None

    @contextmanager
    def trace(self, case: Case) -> Iterator[Run]:
        """Runs now; what it leaves can be run again."""
        yield Run(self._traced(case), Rerunnable(self, case))

    def _traced(self, case: Case, *moved: Any) -> Trace:
        found = Rerunnable(self, case).everywhere(lambda alive: trace_case(alive.side, alive.case, *moved))
        return found[0] if self.ranks == 1 else processes.join_traces(found, self.reduce)

    def seed(self, number: int) -> None:
        """Of what is drawn while training."""
        processes.seed(number, self.one_seed)

    def wrapped(self, module: nn.Module) -> Any:
        """What the loss is given: on several ranks, what wraps the module; a planted fault is in that."""
        found = processes.wrapped(module, self.wrap) if self.ranks > 1 else module
        if self.ground is not None:
            self.ground.build(module)
        return found

    def draw(self, case: Case, number: int, precision: torch.dtype, disturbance: Disturbance | None = None) -> Trace:
        """The same, inputs and weights moved by one unit in the last place of a precision, or its steps disturbed."""
        return self._traced(case, number, precision, disturbance)

    def planted(self, ground: Ground) -> Side:
        """With a fault in what it builds and in what its loss is given."""

        def fed(module: nn.Module, batch: Batch) -> Tensor:
            return self.loss(module, ground.feed(batch))

        if self.ranks > 1:  # what is sharded has other parameters than what was built
            return replace(self, loss=fed, ground=ground)
        return replace(self, build=lambda: ground.build(self.build()), loss=fed)

    def write(self, module: nn.Module, folder: Path) -> None:
        """Save the module into a folder that exists; of several ranks the first does, all of the module."""
        if any(hasattr(value, "full_tensor") for value in module.parameters()):
            module, state = self.build(), state_of(module)
            copy_weights(module, state)
        if processes.is_first():
            self._save(module, folder)
        processes.wait()

    def _save(self, module: nn.Module, folder: Path) -> None:
        if self.save is not None:
            self.save(module, folder)
        elif hasattr(module, "save_pretrained"):
            cast(Any, module).save_pretrained(folder)
        else:
            save_model(module, str(folder / "model.safetensors"))

    def read(self, folder: Path) -> nn.Module:
        """A module with what ``write`` left, in the mode that ``build`` gives."""
        if self.load is not None:
            return self.load(folder)
        module = self.build()
        if hasattr(module, "from_pretrained") and self.save is None:
            opened: nn.Module = cast(Any, type(module)).from_pretrained(folder)
            return opened.train(module.training)
        load_model(module, str(folder / "model.safetensors"))
        return module


@dataclass(frozen=True)
class Rerunnable:
    """A side that can be run again on a case."""

    side: Side
    case: Case

    def everywhere(self, work: Callable[[Rerunnable], Found]) -> list[Found]:
        """What is made of it in this process, or on every rank of the side, each with its share of the case."""
        if self.side.ranks == 1 or processes.inside():
            return [work(self)]
        return processes.together(self.side.ranks, lambda: work(self._of_rank()), self.side.ground)

    def _of_rank(self) -> Rerunnable:
        case, count = self.case, processes.samples_in(self.case.batches[:1])
        batches, drawn = processes.shares(case.batches, self.side.share), processes.share_of_draws(case.replayed, count)
        return Rerunnable(self.side, replace(case, batches=batches, replayed=drawn))


class Training:
    """A module in training, its optimizer and schedule, and a point for every step that was made.

    ``optimizer`` is None where nothing is trained: the module has no parameters, or its side is only run forward.
    """

    def __init__(self, side: Side, module: nn.Module) -> None:
        self.side, self.module, self.wrapped = side, module, side.wrapped(module)
        self.optimizer: Any = optimizer_for(side.optimizer, module) if side.backward else None
        self.schedule: Any = side.schedule(self.optimizer) if side.schedule and self.optimizer is not None else None
        self.auditor: StepAuditor | None = None
        self.points: list[Point] = []
        self._used = math.nan
        self.settings = [[settings(group) for group in groups_of(self.optimizer)]]
        self.inner = [one for one in optimizers_in(self.optimizer, set()) if isinstance(one, Optimizer)][:1]
        for inner in self.inner:
            inner.register_step_pre_hook(self._begins)

    @property
    def parts(self) -> list[Any]:
        """What has a state beside the module's."""
        return [part for part in (self.optimizer, self.schedule) if part is not None]

    def audit(self) -> list[StepAudit]:
        """Compute every step from now on again; the list fills as steps are made.

        None are made where several optimizers step, or one steps copies of the parameters.
        """
        trained = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        inner, own = [*optimizers_in(self.optimizer, set())], set(map(id, trained.values()))
        if len(inner) != 1 or own.isdisjoint(id(each) for group in inner[0].param_groups for each in group["params"]):
            return []
        self.auditor = StepAuditor(Rule(None, self.side.clips, self.side.rate), trained, inner[0])
        return self.auditor.audits

    def run(self, batches: Sequence[Batch], until: int) -> None:
        """Steps up to number ``until``; the batches come round and round."""
        while (made := len(self.points)) < until:
            loss = self.loss(batches[made % len(batches)])
            self.backward(loss)
            self.step(loss)

    def loss(self, batch: Batch) -> Tensor:
        """A scalar, with a graph unless the side is only run forward."""
        with torch.set_grad_enabled(self.side.backward):
            loss = self.side.loss(self.wrapped, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of {self.side.name or 'a side'} must be one number, found {found}")
        return loss

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, where something is trained."""
        if self.side.backward and loss.requires_grad:
            loss.backward()

    def gradients(self) -> dict[str, Tensor]:
        """By name; parameters without a gradient are left out."""
        return gradients_of(dict(self.module.named_parameters()))

    def step(self, loss: Tensor) -> None:
        """Let the optimizer and the schedule step with the gradients there are, and forget those."""
        if self.optimizer is None:
            self.points.append(Point(0, loss.item(), (), None, 0.0, 0.0))
            return
        norm, self._used = global_norm(self.gradients().values()), rate_of(self.optimizer)
        if self.auditor is not None:
            self.auditor.entered()
        self.side.make_step(self.module, self.optimizer)
        if self.auditor is not None:
            self.auditor.left()
        if self.schedule is not None:
            self.schedule.step()
        self.module.zero_grad()
        self.points.append(Point(0, loss.item(), (), norm, self._used, rate_of(self.optimizer)))

    def _begins(self, *_: Any) -> None:
        """The optimizer itself steps, with what ``side.step`` may have set by hand."""
        self._used = rate_of(self.optimizer)
        self.settings.append([settings(group) for group in groups_of(self.optimizer)])


def trace_side(side: Side, batches: Sequence[Batch], *, seed: int = 0, steps: int = STEPS) -> Trace:
    """Build a side, run ``steps`` optimizer steps over the batches and keep everything of the first.

    The arguments are those of a :class:`Case`.

    Raises:
        InputError: no batch, or no step.
    """
    return trace_case(side, Case("", batches, seed, steps))


def trace_case(
    side: Side,
    case: Case,
    draw: int = 0,
    precision: torch.dtype = torch.float32,
    disturbance: Disturbance | None = None,
) -> Trace:
    """The trace of a side on a case; errors as in :func:`trace_side`.

    Args:
        draw: a number other than 0 moves weights and batches by one unit of ``precision``, at random.
        disturbance: of every step of the first of torch's optimizers; without one, nothing is disturbed.
    """
    if not case.batches:
        raise InputError("comparison", "batches", "none", "at least one batch")
    if case.steps < 1:
        raise InputError("comparison", "steps", case.steps, "at least 1")
    with deterministic(case.seed):
        module = side.build()
        initial = setup_of(module)["initial"]
        copy_weights(module, case.weights)
        if draw:
            move_module(module, draw, precision)
        batches = [moved(batch, draw, precision, part) for part, batch in enumerate(case.batches, 1)]
        training = Training(side, module)
        if disturbance is not None:
            for inner in training.inner:
                disturbance.attach(module, inner)
        setup = {**setup_of(module, training.optimizer), "initial": initial}
        said = {"clip": asdict(side.clips)} if side.clips else {}
        trained = {name: value.requires_grad for name, value in module.named_parameters()}
        trace = Trace(
            run=side.name or "side",
            case=case.name or type(module).__name__,
            dtype=dtype_of(module),
            configuration={"seed": case.seed, "steps": case.steps, **setup, **said},
            trained=tuple(name for name in trained if trained[name]),
            frozen=tuple(name for name in trained if not trained[name]),
            curve=training.points,
            audits=training.audit(),
        )
        trace.keep("init", state_of(module))
        side.seed(case.seed)
        with drawing(case.draws, case.replayed) as drawn:
            _first_step(trace, training, batches[0])
            training.run(batches, case.steps)
        with_first_rates(trace.configuration, training.settings)
        if changed := varied(training.settings):
            trace.configuration["in_steps"] = changed
        trace.keep("mb0.draw", drawn.draws)
        keep_samples(trace, drawn)
        trace.keep("final", state_of(module))
        if processes.inside():
            seeds, samples = "one" if side.one_seed else "own", processes.samples_in(case.batches[:1])
            trace.configuration["ranks"] = {"seed": torch.initial_seed(), "samples": samples, "wanted": seeds}
        trace.environment = describe(case.seed, next((one.device for one in module.parameters()), "cpu"))
    return trace


def _first_step(trace: Trace, training: Training, batch: Batch) -> None:
    with observe(training.module, training.side.taps) as seen, autocast_seen(training.module) as autocast:
        loss = training.loss(batch)
    trace.precision = computed_in(training.module, autocast)
    seen.keep_paths(trace)
    training.backward(loss)
    seen.keep(trace)
    trace.keep("mb0.grad", training.gradients())
    trace.keep("mb0", {"loss": loss.reshape(1)})
    training.step(loss)
    if (norm := trace.curve[0].grad_norm) is not None:
        trace.keep("mb0", {"grad_norm": torch.tensor([norm], dtype=torch.float64)})
    trace.keep("after", state_of(training.module))


def fresh_module(side: Side, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A fresh module, with those of the weights that fit it."""
    module = side.build()
    copy_weights(module, weights or {})
    return module
