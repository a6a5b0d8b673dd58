"""Training-time-test (TTT) attention, plugged into transformers' attention interface and key/value cache.

Shapes: B batch, H query heads, K key/value heads, T positions, e head dim; s is the current TTT step, i an earlier one.

At step s a query at position p sees the step-0 keys of columns j <= p - s and, for i = 1..s, one key of step i that
stands in column p - (s - i). Which position that key is read at is the :class:`~ports.training.alignment.Alignment`.
All scores share one softmax, computed in float32 (float64 inputs stay float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import AttentionInterface

from ports.training.alignment import Alignment
from ports.training.attention.documents import documents_of


class StepLayer(DynamicLayer):
    """A cache layer that keeps the keys and values of each TTT step apart instead of concatenating them."""

    def __init__(self) -> None:
        super().__init__()
        self.step_keys: list[Tensor] = []
        self.step_values: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append this step's keys and values [B, K, T, e]; return all steps' as two tuples."""
        self.step_keys.append(key_states)
        self.step_values.append(value_states)
        return tuple(self.step_keys), tuple(self.step_values)


def ttt_cache() -> Cache:
    """A fresh cache for one pass over the TTT steps."""
    return Cache(layer_class_to_replicate=StepLayer)


def attention_name(alignment: Alignment) -> str:
    """The name under which transformers knows the TTT attention of this alignment."""
    return f"ttt_{alignment.value}"


def ttt_attention(
    query: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor,
    scale: float,
    alignment: Alignment,
) -> Tensor:
    """One step of TTT attention.

    Args:
        query: [B, H, T, e] of step s = ``len(keys) - 1``.
        keys, values: [B, K, T, e] for each step 0..s.
        mask: key padding [B, T], 1 on real positions, indexed by column; in a packed row the number of the document,
            see :mod:`ports.training.attention.documents`. A row sees no other document.
        scale: factor on the scores, e^(-1/2).
        alignment: where the keys of steps 1..s are read.

    Returns:
        [B, H, T, e] in the dtype of ``values``. Masked keys have weight exactly 0.
    """
    groups = query.shape[1] // keys[0].shape[1]
    keys, values = (tuple(_repeat_heads(step, groups) for step in steps) for steps in (keys, values))
    weights = _weights(query, keys, mask, scale, alignment)
    length, step = query.shape[2], len(keys) - 1
    out = torch.matmul(weights[..., :length], values[0])
    for i in range(1, step + 1):
        out = out + weights[..., length + i - 1, None] * _step_key(values[i], step - i, alignment)
    return out


def _weights(query: Tensor, keys: tuple[Tensor, ...], mask: Tensor, scale: float, alignment: Alignment) -> Tensor:
    """[B, H, T, T + s]: the causal columns, then one column for each step 1..s; one softmax over them."""
    step = len(keys) - 1
    causal = torch.matmul(query, keys[0].transpose(2, 3)) * scale
    hidden = torch.finfo(causal.dtype).min  # finite: a row of padding alone gives no NaN; autocast narrows products
    scores = [causal.masked_fill(~_causal_columns(mask, step), hidden)]
    for i in range(1, step + 1):
        dots = (query * _step_key(keys[i], step - i, alignment)).sum(-1, keepdim=True) * scale
        scores.append(dots.masked_fill(~_step_column(mask, step - i), hidden))
    precise = torch.promote_types(query.dtype, torch.float32)
    return torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=precise).to(query.dtype)


def _repeat_heads(states: Tensor, groups: int) -> Tensor:
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _causal_columns(mask: Tensor, step: int) -> Tensor:
    """[B, 1, T, T]: row p sees the real columns j <= p - step of its document."""
    columns, positions = torch.arange(mask.shape[1], device=mask.device), documents_of(mask).positions[0]
    behind = columns[:, None] - columns[None, :]
    return ((behind >= step) & (behind <= positions[:, None]))[None, None] & mask.bool()[:, None, None, :]


def _step_column(mask: Tensor, distance: int) -> Tensor:
    """[B, 1, T, 1]: is there a column p - distance in the document, and is it real."""
    exists = documents_of(mask).positions >= distance
    return (exists & _shift_right(mask.bool(), distance, dim=1))[:, None, :, None]


def _step_key(states: Tensor, distance: int, alignment: Alignment) -> Tensor:
    """The step's states as row p reads them: at p (prototype) or at p - distance (chain)."""
    return states if alignment is Alignment.PROTOTYPE else _shift_right(states, distance, dim=2)


def _shift_right(states: Tensor, distance: int, dim: int) -> Tensor:
    """``states[p - distance]`` at p along ``dim``; the first rows repeat the first entry (they are masked)."""
    if distance == 0:
        return states
    length = states.shape[dim]
    index = torch.arange(length, device=states.device).sub(distance).clamp(min=0)
    return states.index_select(dim, index)


Attend = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Any, float, Alignment], Tensor]
"""A form of the TTT attention, with the arguments of :func:`ttt_attention`."""


def register(name: str, attend: Attend, alignment: Alignment) -> None:
    """Make ``attend`` known to transformers under ``name``; it refuses dropout."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: tuple[Tensor, ...],
        value: tuple[Tensor, ...],
        attention_mask: Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if dropout:
            raise ValueError(f"attention_dropout: found {dropout}, expected 0.0: TTT attention has no dropout")
        out = attend(query, key, value, attention_mask, scaling, alignment)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, forward)


for _alignment in Alignment:
    register(attention_name(_alignment), ttt_attention, _alignment)
