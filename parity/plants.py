"""Faults that a running port can have, planted by hooks into what it builds, steps with, is fed, saves and resumes.

A :class:`Fault` is entered like a context; while it is open, whatever a side builds or steps has the fault. It writes
down where (``Ground.place``), and is not planted where nothing of its kind comes by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from parity.calls import with_tensors
from parity.trace import Trace


@dataclass
class Ground:
    """One run of a side with a fault in it.

    ``called`` are the innermost modules with parameters that a run without a fault calls, in order, ``buffers`` the
    last words of buffers' names, each with whether it is saved, ``found`` what the run computed; ``place`` is where the
    fault was planted, empty until then. ``built`` is told of every module, ``fed`` gives what stands for the batch of a
    number, ``of_port`` changes the port before known differences are switched. ``names`` and ``held`` are what trains
    and the ids of all parameters. ``fault`` and ``size`` tell another process what to plant; ``filled``: a module has
    its weights when it is built, and keeps them elsewhere when it runs.
    """

    called: list[str] = field(default_factory=list)
    place: str = ""
    built: list[Callable[[nn.Module], object]] = field(default_factory=list)
    fed: Callable[[int, Any], Any] = lambda number, batch: batch
    of_port: Callable[[Any], Any] = lambda side: side
    buffers: dict[str, bool] = field(default_factory=dict)
    found: Trace | None = None
    names: set[str] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    batches: int = 0
    fault: str = ""
    size: float = 1.0
    filled: bool = False

    def build(self, module: nn.Module) -> nn.Module:
        """A fresh module, with the fault in it."""
        self.names |= {name for name, value in module.named_parameters() if value.requires_grad}
        self.held |= set(map(id, module.parameters()))
        for change in self.built:
            change(module)
        return module

    def feed(self, batch: Any) -> Any:
        """What stands for the next batch."""
        self.batches += 1
        return self.fed(self.batches - 1, batch)


Plant = Callable[[Ground, float], AbstractContextManager[object]]
"""Plants a fault of a size."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a port.

    Args:
        name: in reports.
        plant: see :data:`Plant`.
        sizes: the first is planted; where it is not seen, the others say from which size on it is.
        named_by: the check that is to see it; empty: any of those that look at one run.
        otherwise: why it was not planted, where it was not.
        hidden: what is never run is not seen either, rather than not planted.
        idle: why one that changes not a bit of the run is none; empty: it is one all the same.
        forward: it shows in a module that another process builds and only runs forward, which plants it by its name.
    """

    name: str
    plant: Plant
    sizes: Sequence[float] = (1.0,)
    named_by: str = ""
    otherwise: str = "nothing of that kind runs"
    hidden: bool = False
    idle: str = ""
    forward: bool = False


@contextmanager
def scouted(ground: Ground, size: float) -> Iterator[None]:
    """No fault; ``called`` and ``buffers`` fill."""
    seen = ground.called

    def built(module: nn.Module) -> None:
        saved = module.state_dict()
        ground.buffers = {name.rpartition(".")[2]: name in saved for name, _ in module.named_buffers()}
        for name, part in module.named_modules():
            if [*part.parameters(recurse=False)] and not [*part.children()]:
                part.register_forward_hook(lambda *_, name=name: None if name in seen else seen.append(name))

    ground.built.append(built)
    yield


def patched(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """``change`` of what stands at ``owner.name``, function, class or value, in its place.

    Raises:
        AttributeError: there is nothing: a run that fails by that is not one that a check has seen.
    """
    getattr(owner, name)

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        ground.place = f"{getattr(owner, '__name__', owner)}.{name}".rpartition("ports.")[2]
        with mock.patch.object(owner, name, change(getattr(owner, name))):
            yield

    return plant


def giving(owner: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """``owner.name`` gives what ``change`` makes of its result; a change in place gives None."""

    def standing_in(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            found = real(*args, **named)
            other = change(found)
            return found if other is None else other

        return run

    return patched(owner, name, standing_in)


def taking(owner: Any, name: str, change: Callable[..., tuple[Any, ...]]) -> Plant:
    """``owner.name`` is called with what ``change`` makes of its arguments."""
    return patched(owner, name, lambda real: lambda *args, **named: real(*change(*args), **named))


def several(*plants: Plant) -> Plant:
    """All of them at once."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        with ExitStack() as stack:
            for one in plants:
                stack.enter_context(one(ground, size))
            yield

    return plant


def on_build(change: Callable[[Ground, nn.Module, float], str | None]) -> Plant:
    """``change`` alters a fresh module and says where."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        def built(module: nn.Module) -> None:
            ground.place = change(ground, module, size) or ground.place

        ground.built.append(built)
        yield

    return plant


def at_first_forward(change: Callable[[nn.Module, float], str | None]) -> Plant:
    """``change`` alters a module when it, or a part of it, is first called: after weights were copied into it."""

    def built(ground: Ground, module: nn.Module, size: float) -> None:
        left = [change]

        def called(*_: Any) -> None:
            if left:
                with torch.no_grad():
                    ground.place = left.pop()(module, size) or ground.place

        if ground.filled:
            called()
        for part in module.modules():
            part.register_forward_pre_hook(called)

    return on_build(built)


def middle(names: Sequence[str]) -> str:
    return names[len(names) // 2] if names else ""


def matrix(module: nn.Module, trained: bool = True) -> str:
    """The trained matrix in the middle, else another parameter."""
    found = {name: value for name, value in module.named_parameters() if value.requires_grad == trained}
    return middle([name for name, value in found.items() if value.dim() > 1] or [*found])


def gradient(change: Callable[[Tensor, float], Tensor]) -> Plant:
    """Of one parameter, as the backward gives it; what is sharded is whole from the first forward on."""

    def called(module: nn.Module, size: float) -> str:
        name = matrix(module)
        if name:
            dict(module.named_parameters())[name].register_hook(lambda grad: change(grad, size))
        return name

    return at_first_forward(called)


def output(change: Callable[[Tensor, float], Tensor]) -> Plant:
    """Of one module, the one in the middle of those that are called."""

    def built(ground: Ground, module: nn.Module, size: float) -> str:
        name, parts = middle(ground.called), dict(module.named_modules())
        if name in parts:
            floating = partial(_floating, change, size)
            parts[name].register_forward_hook(lambda part, given, out: with_tensors(out, floating))
        return name if name in parts else ""

    return on_build(built)


def _floating(change: Callable[[Tensor, float], Tensor], size: float, value: Tensor) -> Tensor:
    return change(value, size) if value.is_floating_point() else value


@contextmanager
def _steps(ground: Ground, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Around every step of an optimizer of what the side built; both are given it and the step's number."""
    counts, numbers = Counter[int](), dict[int, int]()

    def mine(optimizer: Optimizer) -> bool:
        return any(id(value) in ground.held for group in optimizer.param_groups for value in group["params"])

    def begins(optimizer: Optimizer, *_: Any) -> None:
        if mine(optimizer):
            numbers[id(optimizer)] = counts[id(optimizer)]
            counts[id(optimizer)] += 1
            before(optimizer, numbers[id(optimizer)])

    def ended(optimizer: Optimizer, *_: Any) -> None:
        if mine(optimizer):
            after(optimizer, numbers[id(optimizer)])

    hooks = register_optimizer_step_pre_hook(begins), register_optimizer_step_post_hook(ended)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def setting(name: str, change: Callable[[Any, float], Any], first: int = 0) -> Plant:
    """A setting of all groups while the optimizer steps, from a step on."""

    def plant(ground: Ground, size: float) -> AbstractContextManager[None]:
        held: dict[int, Any] = {}

        def before(optimizer: Optimizer, number: int) -> None:
            for group in optimizer.param_groups if number >= first else ():
                if name in group:
                    held[id(group)] = group[name]
                    group[name], ground.place = change(group[name], size), f"{type(optimizer).__name__} {name}"

        def after(optimizer: Optimizer, number: int) -> None:
            for group in optimizer.param_groups:
                group[name] = held.pop(id(group), group.get(name))

        return _steps(ground, before, after)

    return plant


def update(change: Callable[[Tensor, Tensor], Tensor], only: int | None = None) -> Plant:
    """What a step makes of every weight, from the weights before and after; the skipped one leaves no state either."""

    def plant(ground: Ground, size: float) -> AbstractContextManager[None]:
        held: dict[int, Any] = {}

        def before(optimizer: Optimizer, number: int) -> None:
            if only in (None, number):
                parameters = [value for group in optimizer.param_groups for value in group["params"]]
                held[id(optimizer)] = [(value, value.detach().clone()) for value in parameters]

        def after(optimizer: Optimizer, number: int) -> None:
            for value, old in held.pop(id(optimizer), ()):
                value.data.copy_(change(old, value.detach().clone()))
                ground.place = f"{type(optimizer).__name__}, {'every step' if only is None else f'step {only + 1}'}"

        return _steps(ground, before, after)

    return plant


def feeding(change: Callable[[int, Any], Any]) -> Plant:
    """Another batch, by its number; None: the same."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        def fed(number: int, batch: Any) -> Any:
            other = change(number, batch)
            if other is None:
                return batch
            ground.place = ground.place or f"batch {number}"
            return other

        ground.fed = fed
        yield

    return plant
