"""Answers about a tensor that wait for its device, asked once while the tensor lives and is not written to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

R = TypeVar("R")


def once_per_tensor(ask: Callable[[Tensor], R]) -> Callable[[Tensor], R]:
    """``ask`` with its answers remembered by tensor, in ``known``; an answer must not hold the tensor itself."""
    known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    @wraps(ask)
    def remembered(tensor: Tensor) -> R:
        version = 0 if tensor.is_inference() else tensor._version
        if known.get(tensor, (None,))[0] != version:
            known[tensor] = (version, ask(tensor))
        answer: R = known[tensor][1]
        return answer

    exposed: Any = remembered
    exposed.known = known
    return remembered
