"""What the layers of a verifier see of a memory, where some of them look back a limited way only.

transformers makes such masks from the slots of a cache. Holes shift slots, so here they are made from positions.

Shapes: B rows, Q new slots, K slots with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ports.errors import InputError
from ports.evaluate.memory import Memory

Near = Callable[[Tensor, Tensor, int], Tensor]
"""From positions of queries and keys, and a size, to bool: is the key near enough."""

LOCAL: dict[str, tuple[str, Near]] = {
    "sliding_attention": ("sliding_window", lambda query, key, size: query - key < size),
    "chunked_attention": ("attention_chunk_size", lambda query, key, size: query // size == key // size),
}
"""By the layer's type: the key of the config that holds the size, and what near means."""

GLOBAL = "full_attention"


def local_types(config: Any) -> set[str]:
    """The types of layers that see a part of the text only; ``config`` is the text model's."""
    return set(getattr(config, "layer_types", None) or []) - {GLOBAL}


def check_types(file: str, config: Any) -> None:
    """Refuse (InputError) layers that keep something else than keys and values: it could not be taken back."""
    unknown = sorted(local_types(config) - set(LOCAL))
    if unknown:
        expected = f"{', '.join([GLOBAL, *LOCAL])}: what other layers keep of rejected tokens cannot be taken back"
        raise InputError(file, "layer_types", unknown[0], expected)


def sight(config: Any, memory: Memory, width: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """What transformers takes as ``attention_mask`` for the last ``width`` slots.

    The owned slots [B, K] where every layer sees all of them; otherwise for each type of layer a mask [B, 1, Q, K] that
    is added to the scores.
    """
    kinds = local_types(config)
    if not kinds:
        return memory.owned.long()
    every = memory.visible(width)
    masks = {kind: _added(every & _near(config, kind, memory, width), dtype) for kind in kinds}
    return {GLOBAL: _added(every, dtype), **masks}


def _near(config: Any, kind: str, memory: Memory, width: int) -> Tensor:
    """bool [B, 1, Q, K]."""
    size, near = LOCAL[kind]
    positions = memory.positions[:, None]
    return near(positions[..., -width:, None], positions[..., None, :], getattr(config, size))


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
