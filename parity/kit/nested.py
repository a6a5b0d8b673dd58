"""Tensors in whatever a module takes and gives: tensors, tuples, dicts, model outputs, dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


def tensors_of(value: Any) -> dict[str, Tensor]:
    """All tensors by their place: ``0``, ``0.1``, ``logits``; a lone tensor's place is the empty string."""
    return {".".join(place): tensor for place, tensor in _walk(value, ())}


def _walk(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    for key, item in _items(value):
        yield from _walk(item, (*place, str(key)))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed; other objects, a key/value cache for example, stay themselves."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: with_tensors(item, change) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(with_tensors(item, change) for item in value)
    return value


def snapshot(value: Any) -> Any:
    """A copy that later steps cannot change: tensors detached, other objects copied as far as they let themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (dict, tuple, list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        copied = [(key, snapshot(item)) for key, item in items]
        return dict(copied) if isinstance(value, dict) else type(value)(item for _, item in copied)
    try:
        return copy.deepcopy(value, _detached(value))
    except Exception:  # locks, handles of other libraries
        return value


def _detached(value: Any) -> dict[int, Any]:
    """For ``deepcopy``: what stands for the tensors inside an object, a key/value cache for example; modules stay."""
    memo: dict[int, Any] = {}
    seen, left = {id(None)}, [value]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            memo[id(one)] = one.detach().clone()
        elif isinstance(one, nn.Module):
            memo[id(one)] = one
        elif isinstance(one, (Mapping, list, tuple, set)):
            left += one.values() if isinstance(one, Mapping) else one
        else:
            left += getattr(one, "__dict__", {}).values()
    return memo


def first_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The first floating tensor, or the first at all."""
    floating = (tensor for tensor in tensors.values() if tensor.is_floating_point())
    return next(floating, next(iter(tensors.values()), None))


def lone(out: Any) -> Any:
    """A structure that holds one tensor is that tensor, so that ``(out, None)`` and ``out`` are the same."""
    tensors = tensors_of(out)
    return next(iter(tensors.values())) if len(tensors) == 1 else out
