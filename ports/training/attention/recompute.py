"""Activation checkpointing: a decoder layer keeps its input alone and runs again in the backward.

transformers' own switch takes the key/value cache away from a layer, since a layer that runs twice would write to it
twice. Here the second run finds in the cache what the first one found, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache


def run_layer(layer: Callable[..., Tensor], hidden: Tensor, cache: Cache, recompute: bool, **inputs: Any) -> Tensor:
    """``layer(hidden, past_key_values=cache, **inputs)``; with ``recompute`` its activations are not kept.

    The keys and values that the layer adds to the cache are kept: later TTT steps read them. Nothing in a layer draws
    random numbers, so no generator is put back for the second run.
    """
    out: Tensor
    if recompute:
        inputs |= {"past_key_values": _OnceWritten(cache), "use_reentrant": False, "preserve_rng_state": False}
        out = checkpoint(layer, hidden, **inputs)
    else:
        out = layer(hidden, past_key_values=cache, **inputs)
    return out


class _OnceWritten:
    """A cache as one call of a layer sees it: the first update writes, every later one is the call over again."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._before: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values [B, K, T, e] of all steps up to this one, as two tuples."""
        if self._before is not None:
            keys, values = self._before
            return (*keys, key_states), (*values, value_states)
        keys, values = self._cache.update(key_states, value_states, layer_idx, *args, **kwargs)
        self._before = keys[:-1], values[:-1]
        return keys, values
