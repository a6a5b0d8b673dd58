"""The faults that any port can have, as ``parity run --power`` plants them, and those of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler

from parity.calls import equal_tensors, tensors_of, with_tensors
from parity.observe import replaced
from parity.plants import (
    Fault,
    Ground,
    Plant,
    at_first_forward,
    feeding,
    gradient,
    matrix,
    middle,
    on_build,
    output,
    scouted,
    setting,
    update,
)


def _wider_eps(ground: Ground, module: nn.Module, size: float) -> str | None:
    for name in ground.called:
        part = dict(module.named_modules()).get(name)
        for word in ("eps", "variance_epsilon"):
            if isinstance(held := getattr(part, word, None), float):
                setattr(part, word, held * size)
                return f"{name}.{word}"
    return None


def _one_entry(module: nn.Module, size: float) -> str:
    """The largest one of a matrix."""
    name = matrix(module) or matrix(module, trained=False)
    if name:
        flat = dict(module.named_parameters())[name].data.view(-1)
        flat[flat.abs().argmax()] *= size
    return name


def _other_buffer(word: str, module: nn.Module, size: float) -> str | None:
    """All of those of a name."""
    found = [(name, value) for name, value in module.named_buffers() if name.rpartition(".")[2] == word]
    for _, value in found:
        value.copy_(~value if value.dtype == torch.bool else value * size if value.is_floating_point() else value + 1)
    return ", ".join(name for name, _ in found)


def _trained(wanted: bool, ground: Ground, module: nn.Module, size: float) -> str:
    name = matrix(module, not wanted)
    if name:
        dict(module.named_parameters())[name].requires_grad_(wanted)
    return name


def _lower_precision(module: nn.Module, size: float) -> str:
    torch.set_float32_matmul_precision("high")
    return "matmul precision"


def _norm(parameters: Sequence[Tensor], total_norm: Tensor, foreach: bool | None = None) -> float:
    return float(total_norm)


def _largest(parameters: Sequence[Tensor], foreach: bool | None = None) -> float:
    return max((float(value.grad.abs().max()) for value in parameters if value.grad is not None), default=0.0)


CLIPPING: dict[str, tuple[str, Callable[..., float]]] = {
    "norm": ("clip_grads_with_norm_", _norm),
    "value": ("clip_grad_value_", _largest),
}
"""Torch's functions that scale gradients or cut them, with what they hold to a limit.

``clip_grad_norm_`` calls the first, as accelerate does since 1.16, which takes the norm itself.
"""


@contextmanager
def _clipped(ground: Ground, size: float) -> Iterator[None]:
    """Torch's clipping at another limit."""

    def at_another(kind: str, held: Callable[..., float], real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def run(parameters: Any, limit: float, *rest: Any, **named: Any) -> Any:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            if held(parameters, *rest, **named) > limit * min(1.0, size):
                ground.place = f"{kind} at {limit:g}"
            return real(parameters, limit * size, *rest, **named)

        return run

    with ExitStack() as stack:
        for kind, (function, held) in CLIPPING.items():
            stack.enter_context(replaced(f"torch.nn.utils:{function}", partial(at_another, kind, held)))
        yield


@contextmanager
def _late(ground: Ground, size: float) -> Iterator[None]:
    """The first step of a schedule, after the one that begins it, is left out."""
    counts, real = Counter[int](), lr_scheduler.LRScheduler.step

    def step(self: Any, *args: Any, **named: Any) -> None:
        counts[id(self)] += 1
        if counts[id(self)] != 2:
            before = [group["lr"] for group in self.optimizer.param_groups]
            real(self, *args, **named)
            if counts[id(self)] > 2 and before != [group["lr"] for group in self.optimizer.param_groups]:
                ground.place = type(self).__name__

    with mock.patch.object(lr_scheduler.LRScheduler, "step", step):
        yield


def _twice() -> Plant:
    """The first in the place of the second."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        first: list[Any] = []

        def fed(number: int, batch: Any) -> Any:
            if number == 0:
                first[:] = [with_tensors(batch, Tensor.clone)]
            if number != 1 or equal_tensors(*map(tensors_of, (batch, first[0]))):
                return batch
            ground.place = "batch 1"
            return first[0]

        ground.fed = fed
        yield

    return plant


def _turned(number: int, batch: Any) -> Any:
    """The samples of a batch in another order; none where it has one."""
    sizes = [len(value) for value in tensors_of(batch).values() if value.dim() > 1 and len(value) > 1]
    if not sizes:
        return None
    return with_tensors(batch, lambda value: value.roll(1, 0) if value.dim() and len(value) == sizes[0] else value)


def _ends(own: str, name: str) -> bool:
    """Is it that parameter's name, or its name in a part of the module, which alone may be saved?"""
    return isinstance(name, str) and f".{own}".endswith(f".{name}")


def saved(change: Callable[[dict[str, Tensor], str], object]) -> Plant:
    """A trained tensor in whatever file of safetensors or of torch holds it."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        def saving(real: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(real)
            def run(tensors: Any, *rest: Any, **named: Any) -> Any:
                held = [*tensors] if isinstance(tensors, Mapping) else []
                names = sorted(name for name in held if any(_ends(own, name) for own in ground.names))
                if names:
                    tensors, ground.place = dict(tensors), middle(names)
                    change(tensors, ground.place)
                return real(tensors, *rest, **named)

            return run

        with replaced("safetensors.torch:save_file", saving), replaced("torch:save", saving):
            yield

    return plant


def _other_entry(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1


def _forgetting(*kinds: type) -> Plant:
    """State dicts that are loaded into nothing."""

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        def nothing(self: Any, state: Any) -> None:
            if state.get("state", True):  # of an optimizer that has not stepped there is nothing to load
                ground.place = type(self).__name__

        with ExitStack() as stack:
            for kind in (kind for kind in kinds if "load_state_dict" in vars(kind)):
                stack.enter_context(mock.patch.object(kind, "load_state_dict", nothing))
            yield

    return plant


def inside(target: str) -> Plant:
    """What a function gives, tensors or a number, times 1.1 and 3 more; whole numbers in another order."""

    def wrong(value: Tensor) -> Tensor:
        return value * 1.1 + 3 if value.is_floating_point() else value.flatten().roll(1).view_as(value)

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        def standing_in(real: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(real)
            def run(*args: Any, **named: Any) -> Any:
                found = real(*args, **named)
                number = isinstance(found, float)
                if number or tensors_of(found):
                    ground.place = target
                return found * 1.1 + 3 if number else with_tensors(found, wrong)

            return run

        with replaced(target, standing_in):
            yield

    return plant


def in_field(name: str) -> Plant:
    """What a side of callables steps with, before any known difference is switched."""

    def wrong(ground: Ground, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def run(*given: Any) -> Any:
            ground.place = f"the port's {name}"
            found: Any = None if name == "step" else real(*given)
            if name == "loss":
                return found * 1.1 + 3
            for group in getattr(found, "param_groups", ()):
                group["lr"] *= 1.01
            if name == "schedule":
                found.base_lrs = [1.01 * rate for rate in found.base_lrs]
            return found

        return run

    @contextmanager
    def plant(ground: Ground, size: float) -> Iterator[None]:
        ground.of_port = lambda side: replace(side, **{name: wrong(ground, getattr(side, name))})
        yield

    return plant


SOUND = Fault("none", scouted)
SCHEDULES = [kind for kind in vars(lr_scheduler).values() if isinstance(kind, type) and kind is not Optimizer]
NO_SETTING = "no optimizer of torch's steps the module's parameters with such a setting"
NO_STEP = "no optimizer of torch's steps the module's parameters"
NO_CLIP = "no gradient reaches a limit of torch's clipping"
NO_FILE = "nothing that trains is saved by safetensors or torch"

GENERIC = (
    Fault("matmul precision lowered", at_first_forward(_lower_precision)),
    Fault("rate times 1.01", setting("lr", lambda rate, size: rate * size), (1.01,), otherwise=NO_SETTING),
    Fault("rate times 1.01 from step 3 on", setting("lr", lambda rate, by: rate * by, 2), (1.01,), otherwise=NO_STEP),
    Fault(
        "weight decay off or on",
        setting("weight_decay", lambda decay, size: 0.0 if decay else 0.01),
        otherwise=NO_SETTING,
    ),
    Fault(
        "beta2 off by 0.001",
        setting("betas", lambda held, by: (held[0], held[1] - by)),
        (1e-3,),
        otherwise=NO_SETTING,
    ),
    Fault("eps times 10", setting("eps", lambda eps, size: eps * size), (10, 1e3, 1e5), otherwise=NO_SETTING),
    Fault("clip times 1.02", _clipped, (1.02,), otherwise=NO_CLIP),
    Fault("clip at a thousandth", _clipped, (1e-3,), otherwise=NO_CLIP),
    Fault("schedule a step late", _late, otherwise="no rate follows a schedule of torch's"),
    Fault("a step skipped", update(lambda old, new: old, 2), otherwise=NO_STEP),
    Fault("the update's sign", update(lambda old, new: 2 * old - new), otherwise=NO_STEP),
    Fault("the update made twice", update(lambda old, new: 2 * new - old), otherwise=NO_STEP),
    Fault("one gradient times 1.01", gradient(lambda grad, size: grad * size), (1.01, 1.1, 2)),
    Fault("one gradient lost", gradient(lambda grad, size: torch.zeros_like(grad))),
    Fault("one gradient permuted", gradient(lambda grad, size: grad.roll(1, -1))),
    Fault("one module's output times 1.001", output(lambda out, size: out * size), (1.001, 1.01, 1.1), forward=True),
    Fault("dropout left on", output(lambda out, size: F.dropout(out, size)), (0.1,), forward=True),
    Fault(
        "a norm's eps times 10",
        on_build(_wider_eps),
        (10, 100, 1e3, 1e4),
        otherwise="no module has an eps",
        forward=True,
    ),
    Fault("one weight's largest entry off by 1 %", at_first_forward(_one_entry), (1.01, 1.1, 2, 8, 64), forward=True),
    Fault("a frozen parameter trained", on_build(partial(_trained, True)), otherwise="none is frozen"),
    Fault("a trained parameter frozen", on_build(partial(_trained, False)), otherwise="none is trained"),
    Fault("a batch twice", _twice(), otherwise="there is one batch, or one step"),
    Fault("samples in another order", feeding(_turned), otherwise="a batch is one sample", forward=True),
    Fault("a saved tensor changed", saved(_other_entry), named_by="round_trip", otherwise=NO_FILE),
    Fault(
        "a saved tensor left out", saved(lambda held, name: held.pop(name)), named_by="round_trip", otherwise=NO_FILE
    ),
    Fault(
        "the optimizer not resumed",
        _forgetting(Optimizer),
        named_by="resume",
        otherwise="no state is loaded into an optimizer by its load_state_dict",
    ),
    Fault(
        "the schedule not resumed",
        _forgetting(*SCHEDULES),
        named_by="resume",
        otherwise="no state is loaded into a schedule by its load_state_dict",
    ),
)
"""What any port can have."""


def of_buffers(names: Mapping[str, bool]) -> list[Fault]:
    """A fault of the buffers of each of these names; one that is in no file counts if anything reads it."""
    idle = "nothing reads it, and no file holds it"
    return [
        Fault(
            f"buffer {name} changed",
            at_first_forward(partial(_other_buffer, name)),
            (1.01, 1.1, 2.0),
            idle="" if kept else idle,
            forward=True,
        )
        for name, kept in names.items()
    ]


def planted_by_name(ground: Ground) -> Fault:
    """Of those that any port can have, what another process plants of ``ground.fault``; none, if not by its name."""
    known = (fault for fault in (SOUND, *GENERIC, *of_buffers(ground.buffers)) if fault.name == ground.fault)
    return next(known, Fault("", lambda ground, size: nullcontext()))
