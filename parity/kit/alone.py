"""One module by itself: the arguments it is called with, its outputs and its gradients."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.kit.nested import lone, snapshot, tensors_of, with_tensors
from parity.kit.watch import Call, by_name

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Alone:
    """What one module gave by itself."""

    call: Call
    gradients: dict[str, Tensor]


def fitted(part: nn.Module, own: nn.Module, arguments: Arguments) -> tuple[Arguments, list[str]]:
    """The arguments as the port's ``forward`` takes them, and the names of tensors it does not take.

    Raises:
        TypeError: the port requires something that the original was not called with.
    """
    args, kwargs = arguments
    takes = inspect.signature(part.forward).parameters
    if part is own or list(takes) == list(inspect.signature(own.forward).parameters):
        return arguments, []
    named = by_name(own, args, kwargs)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in takes.values()):
        return arguments, []
    given = _taken(takes, named)
    missing = [name for name, one in takes.items() if one.default is one.empty and _plain(one) and name not in given]
    if missing:
        raise TypeError(f"its forward requires {', '.join(missing)}, the original's is called with {', '.join(named)}")
    passed = [id(value) for value in given.values()]
    dropped = [name for name, value in named.items() if id(value) not in passed and tensors_of(value)]
    return ((), given), dropped


def _taken(takes: Mapping[str, inspect.Parameter], named: Mapping[str, Any]) -> dict[str, Any]:
    """What the port takes, in its order; its first argument is the original's first tensor, whatever the name."""
    lead, main, given = next(iter(takes), ""), _main(named), dict(named)
    if lead in takes and lead not in given and main is not None and _plain(takes[lead]):
        given[lead] = given.pop(main)
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    names = [*takes, *(name for name in given if is_open and name not in takes)]
    return {name: given[name] for name in names if name in given}


def _plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


def _main(named: Mapping[str, Any]) -> str | None:
    """The argument that is a floating tensor, the first of them; else the first tensor."""
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    floating = (name for name, value in tensors.items() if value.is_floating_point())
    return next(floating, next(iter(tensors), None))


def alone(part: nn.Module, arguments: Arguments, name: str, number: int) -> Alone:
    """Forward and backward of one module, every floating input with a gradient of its own."""
    args, kwargs = with_tensors(snapshot(arguments), _leaf)
    set_seed(0)
    out = part(*args, **kwargs)
    outputs = tensors_of(lone(out))
    call = Call(name, number, out={place: value.detach().clone() for place, value in outputs.items()})
    reached = [value for value in outputs.values() if value.requires_grad]
    leaves = {place: value for place, value in tensors_of((args, kwargs)).items() if value.requires_grad}
    parameters = {place: value for place, value in part.named_parameters() if value.requires_grad}
    if not reached:
        return Alone(call, {})
    wanted = [*leaves.values(), *parameters.values()]
    grads = torch.autograd.grad(reached, wanted, [_pattern(value) for value in reached], allow_unused=True)
    call.into_grad = _present(leaves, grads[: len(leaves)], zeros=True)
    return Alone(call, _present(parameters, grads[len(leaves) :]))


def _present(tensors: Mapping[str, Tensor], grads: Sequence[Tensor | None], zeros: bool = False) -> dict[str, Tensor]:
    pairs = dict(zip(tensors, grads))
    if zeros:
        return {name: torch.zeros_like(tensors[name]) if grad is None else grad for name, grad in pairs.items()}
    return {name: grad for name, grad in pairs.items() if grad is not None}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point())


def _pattern(value: Tensor) -> Tensor:
    """A gradient of the output that is the same for both sides and differs from entry to entry."""
    return torch.arange(value.numel(), dtype=torch.float64).cos().reshape(value.shape).to(value)
