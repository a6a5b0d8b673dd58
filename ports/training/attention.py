"""Training-time-test (TTT) attention, plugged into transformers' attention interface and key/value cache.

Shapes: B batch, H query heads, K key/value heads, T positions, e head dim; s is the current TTT step, i an earlier one.

At step s a query at position p sees the step-0 keys of columns j <= p - s and, for i = 1..s, one key of step i that
stands in column p - (s - i). Which position that key is read at is the :class:`~ports.training.alignment.Alignment`.
All scores share one softmax, computed in float32 (float64 inputs stay float64).

A mask [B, T] says where the documents of a batch lie: one a row, padded (1 is a real position, 0 padding), or packed
end to end in a single row, which has the number of the document at every position, from 1 on in order. (Speculators'
``document_ids`` count from 0 and have -1 on padding.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import AttentionInterface

from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.flash import attend_documents
from ports.training.flash_kernels import kernel_for, repeat_heads
from ports.training.masks import documents_of
from ports.training.shared_compute import product_dtype

DENSE_HERE = "auto or eager, which are dense here, in O(T^2) memory"


class AttentionImplementation(str, Enum):
    """``EAGER``: dense scores, for reading. ``FAST``: O(T) memory, or a refusal. ``AUTO``: fast where it can be.

    Where it cannot, torch has no kernel or padding stands before or between documents: ``AUTO`` warns and is dense.
    """

    AUTO = "auto"
    EAGER = "eager"
    FAST = "fast"


def attention_name(alignment: Alignment, implementation: AttentionImplementation = AttentionImplementation.AUTO) -> str:
    """What transformers knows this attention by; with "flash" in the name it would look for the flash-attn package."""
    dense = implementation is AttentionImplementation.EAGER
    return f"ttt_{alignment.value}" + ("" if dense else f"_{implementation.value}")


def attention_line(implementation: AttentionImplementation, device: torch.device, dtype: torch.dtype) -> str:
    """What a run says of the attention that it takes, for products in ``dtype``.

    Raises:
        InputError: the fast one by name, where torch ships no kernel for it.
    """
    if implementation is AttentionImplementation.EAGER:
        return "attention: dense, in O(T^2) memory, as asked for"
    if kernel_for(device, dtype) is not None:
        return "attention: fast, in O(T) memory"
    found = _no_kernel(device, dtype)
    if implementation is AttentionImplementation.FAST:
        raise InputError("command line", "--attn-implementation", f"fast: {found}", DENSE_HERE)
    return f"attention: dense, in O(T^2) memory: {found}"


def _no_kernel(device: torch.device, dtype: torch.dtype) -> str:
    place = "ROCm" if device.type == "cuda" and torch.version.hip else device.type
    return f"torch has no kernel for {str(dtype).removeprefix('torch.')} on this {place} device"


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
        mask: [B, T], key padding indexed by column, or the documents of a packed row, which do not see each other.
        scale: factor on the scores, e^(-1/2).
        alignment: where the keys of steps 1..s are read.

    Returns:
        [B, H, T, e] in the dtype of ``values``. Masked keys have weight exactly 0.
    """
    keys, values = (tuple(repeat_heads(step, query.shape[1]) for step in steps) for steps in (keys, values))
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
    index = torch.arange(states.shape[dim], device=states.device).sub(distance).clamp(min=0)
    return states.index_select(dim, index)


def fast_ttt_attention(
    query: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    scale: float,
    alignment: Alignment,
) -> Tensor:
    """:func:`ttt_attention` without a [T, T] tensor, see :mod:`ports.training.flash`.

    With padding on the right no real row sees a padded column, so nothing needs masking (nor with ``mask`` None). A
    packed row is one call where a kernel knows documents, else one for each.

    Returns:
        [B, H, T, e] in the query's dtype, in autocast in that dtype. Rows of padded positions are finite and mean
        nothing.

    Raises:
        ValueError: any other mask, or what torch ships no kernel for.
    """
    dtype, lengths = product_dtype(query), _lengths(mask, query.shape[2])
    if why := _why_dense(query, mask):
        raise ValueError(f"attn_implementation: found fast: {why}, expected {DENSE_HERE}")
    if len(lengths) == 1 or kernel_for(query.device, dtype, lengths) is not None:
        return attend_documents(query, keys, values, scale, alignment, lengths)
    steps, rows = len(keys), zip(*(states.split(lengths, dim=2) for states in (query, *keys, *values)))
    outs = [attend_documents(row, kv[:steps], kv[steps:], scale, alignment, row.shape[2:3]) for row, *kv in rows]
    return torch.cat(outs, dim=2)


def auto_ttt_attention(
    query: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    scale: float,
    alignment: Alignment,
) -> Tensor:
    """:func:`fast_ttt_attention`, or :func:`ttt_attention` and a warning that says why."""
    if (why := _why_dense(query, mask)) is None:
        return fast_ttt_attention(query, keys, values, mask, scale, alignment)
    warnings.warn(f"attention: dense, in O(T^2) memory: {why}", stacklevel=2)
    dense = torch.ones_like(query[:, 0, :, 0], dtype=torch.int64) if mask is None else mask
    return ttt_attention(query, keys, values, dense, scale, alignment)


def _why_dense(query: Tensor, mask: Tensor | None) -> str | None:
    """None where the fast form is possible."""
    dtype = product_dtype(query)
    if kernel_for(query.device, dtype) is None:
        return _no_kernel(query.device, dtype)
    return None if _lengths(mask, query.shape[2]) else "padding before or between the real positions of a row"


def _lengths(mask: Tensor | None, length: int) -> tuple[int, ...]:
    """Of the documents of every row; none where padding comes before or between them."""
    if mask is None or documents_of(mask).right_padded:
        return (length,)
    return documents_of(mask).lengths


Attend = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Any, float, Alignment], Tensor]
"""A form of the TTT attention, with the arguments of :func:`ttt_attention`."""


def _register(name: str, attend: Attend, alignment: Alignment) -> None:
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
    _register(attention_name(_alignment, AttentionImplementation.EAGER), ttt_attention, _alignment)
    _register(attention_name(_alignment, AttentionImplementation.FAST), fast_ttt_attention, _alignment)
    _register(attention_name(_alignment), auto_ttt_attention, _alignment)
