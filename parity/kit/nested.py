"""Tensors in whatever a module takes and gives: tensors, tuples, dicts, model outputs, dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


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
        return copy.deepcopy(value)
    except Exception:  # tensors with a graph inside, handles of other libraries
        return value


def first_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The first floating tensor, or the first at all."""
    floating = (tensor for tensor in tensors.values() if tensor.is_floating_point())
    return next(floating, next(iter(tensors.values()), None))


def lone(out: Any) -> Any:
    """A structure that holds one tensor is that tensor, so that ``(out, None)`` and ``out`` are the same."""
    tensors = tensors_of(out)
    return next(iter(tensors.values())) if len(tensors) == 1 else out
