"""Everything that passes through a module and its parts during a forward, and the gradients that come back.

A module that is called several times has several calls, numbered from 0. Inputs reach a module through a view of their
own, so that their gradient is what this call alone sent back.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parity.kit.names import WHOLE
from parity.kit.nested import lone, snapshot, tensors_of, with_tensors


@dataclass
class Call:
    """One call of one module: values as they were then, gradients once a backward has run.

    ``into`` and ``out`` are keyed by argument or place. ``arguments`` are the objects the module was called with, kept
    only when asked for.
    """

    module: str
    number: int
    into: dict[str, Tensor] = field(default_factory=dict)
    out: dict[str, Tensor] = field(default_factory=dict)
    into_grad: dict[str, Tensor] = field(default_factory=dict)
    out_grad: dict[str, Tensor] = field(default_factory=dict)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def key(self) -> str:
        return f"{self.module}#{self.number}"


@contextlib.contextmanager
def watch(module: nn.Module, arguments: bool = False, own_inputs: bool = True) -> Iterator[list[Call]]:
    """Collect the calls of a module and all its parts, in the order in which they end.

    Only the body's forward is watched: what activation checkpointing repeats in the backward is no call of its own.

    Args:
        module: the whole.
        arguments: keep copies of the arguments too.
        own_inputs: the gradient of an input is what this call sent back, not what all readers of the tensor did.
    """
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as hooks:
        for name, part in module.named_modules():
            before, after = _hooks(name or WHOLE, calls, counts, arguments, own_inputs)
            hooks.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(after).remove)
        yield calls


def _hooks(name: str, calls: list[Call], counts: Counter[str], keep: bool, own: bool) -> tuple[Callable[..., Any], ...]:
    running: list[Call] = []

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        call = Call(name, counts[name], arguments=snapshot((args, kwargs)) if keep else None)
        counts[name] += 1
        running.append(call)
        args, kwargs = with_tensors((args, kwargs), _view) if own else (args, kwargs)
        for place, tensor in tensors_of(by_name(part, args, kwargs)).items():
            call.into[place] = tensor.detach().clone()
            _catch(tensor, call.into_grad, place)
        return args, kwargs

    def after(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        call = running.pop()
        for place, tensor in tensors_of(lone(out)).items():
            call.out[place] = tensor.detach().clone()
            _catch(tensor, call.out_grad, place)
        calls.append(call)

    return before, after


def call_of(module: str, number: int, into: Tensor, out: Tensor) -> Call:
    """A call that happened outside of any ``nn.Module``."""
    call = Call(module, number, {"": into.detach().clone()}, {"": out.detach().clone()})
    _catch(into, call.into_grad, "")
    _catch(out, call.out_grad, "")
    return call


def _view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


def by_name(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the module's ``forward``."""
    try:
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def _catch(tensor: Tensor, grads: dict[str, Tensor], place: str) -> None:
    """Sum up the gradient that reaches a tensor; zeros where none does, nothing for tensors that want none."""
    if not tensor.requires_grad:
        return
    grads[place] = torch.zeros_like(tensor, requires_grad=False)

    def caught(grad: Tensor) -> None:
        grads[place] = grads[place] + grad.detach()

    tensor.register_hook(caught)
