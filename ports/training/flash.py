"""TTT attention in O(T) memory: one flash attention for the causal part, one dot product per row and earlier step.

Shapes: B batch, H query heads, K key/value heads, T positions, e head dim; s is the current TTT step, i one of 1..s.

The function is that of :func:`ports.training.attention.ttt_attention`. Row p sees the step-0 keys of the columns
j <= p - s: the queries from s on meet the first T - s keys in a plain causal attention. Each step i adds one score.
With the log-sum-exp of both parts the two softmaxes merge into one, exactly:

    lse = log(exp(lse_causal) + sum_i exp(score_i))
    out = exp(lse_causal - lse) out_causal + sum_i exp(score_i - lse) v_i

The gradient of a softmax needs, beside a score itself, only its row's log-sum-exp and ``delta = grad . out``. The flash
backward takes both from its arguments, so with the merged pair it gives the exact gradients of the causal part.

In a packed row all of this holds document by document. Rows are then chosen by index: those that have a column so far
behind them in their own document.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ports.training.alignment import Alignment
from ports.training.flash_kernels import Causal, Gradients, Kernel, grouped, kernel_for
from ports.training.shared_compute import product_dtype


def attend_documents(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    alignment: Alignment,
    lengths: tuple[int, ...],
) -> Tensor:
    """One step of TTT attention in O(T) memory, where :func:`kernel_for` knows a kernel.

    Args:
        query: [B, H, T, e] of step s = ``len(keys) - 1``.
        keys, values: [B, K, T, e] for each step 0..s.
        scale: factor on the scores, e^(-1/2).
        alignment: where the keys of steps 1..s are read.
        lengths: of the documents of every row, in tokens, T in all: one, or several that are packed.

    Returns:
        [B, H, T, e] in the query's dtype, in autocast in that dtype.
    """
    dtype = product_dtype(query)
    states = (each.to(dtype) for each in (*keys, *values))
    out: Tensor = _MergedAttention.apply(query.to(dtype), scale, alignment, lengths, *states)
    return out


Rows = slice | Tensor
"""Of a dimension; as indices, no row twice."""


class _Pairs(NamedTuple):
    """Rows that meet a column each, those columns, and how many of them every document has, if any."""

    rows: Rows
    columns: Rows
    lengths: tuple[int, ...]


@lru_cache(maxsize=64)
def _pairs(lengths: tuple[int, ...], distance: int, device: torch.device) -> _Pairs:
    """The rows that have a column ``distance`` behind them in their document, with that column."""
    left = tuple(length - distance for length in lengths if length > distance)
    if len(lengths) == 1:
        distance = min(distance, lengths[0])
        return _Pairs(slice(distance, None), slice(lengths[0] - distance), left)
    starts = accumulate(lengths, initial=0)
    columns = torch.cat([start + torch.arange(max(length - distance, 0)) for start, length in zip(starts, lengths)])
    columns = columns.to(device, non_blocking=device.type == "cuda")
    return _Pairs(columns + distance, columns, left)


def _parts(step: int, lengths: tuple[int, ...], alignment: Alignment, device: torch.device) -> list[_Pairs]:
    """For each step 1..s, which rows have a score with it, and where they read its keys and values."""
    pairs = [_pairs(lengths, step - i, device) for i in range(1, step + 1)]
    return pairs if alignment is Alignment.CHAIN else [_Pairs(rows, rows, left) for rows, _, left in pairs]


def _take(states: Tensor, rows: Rows) -> Tensor:
    """[B, H, n, ...] of [B, H, T, ...]: a view where the rows are a slice."""
    return states[:, :, rows] if isinstance(rows, slice) else states.index_select(2, rows)


def _put(states: Tensor, rows: Rows, values: Tensor) -> None:
    """What :func:`_take` gave, changed, back into its place; a view is there already."""
    if not isinstance(rows, slice):
        states.index_copy_(2, rows, values)


def _spread(values: Tensor, rows: Rows, length: int) -> Tensor:
    """From [B, H, n, e] back to [B, H, T, e], zero elsewhere."""
    if isinstance(rows, slice):
        start = rows.start or 0
        return F.pad(values, (0, 0, start, length - start - values.shape[2]))
    return values.new_zeros(*values.shape[:2], length, values.shape[3]).index_copy_(2, rows, values)


class _MergedAttention(torch.autograd.Function):
    """Causal flash attention and single scores under one softmax."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, scale: float, alignment: Alignment, lengths: tuple[int, ...], *states: Tensor
    ) -> Tensor:
        keys, values = states[: len(states) // 2], states[len(states) // 2 :]
        step = len(keys) - 1
        seen, parts = _pairs(lengths, step, query.device), _parts(step, lengths, alignment, query.device)
        with torch.autocast(query.device.type, enabled=False):
            causal = _causal(query, keys[0], values[0], seen, scale)
            scores = [_score(query, key, part, scale) for key, part in zip(keys[1:], parts, strict=True)]
            lse = _merged_lse(causal.lse, scores, seen, parts, query.shape[2])
            out = _merged_out(query, causal, scores, values[1:], seen, parts, lse)
        ctx.save_for_backward(query, out, lse, *states)
        ctx.extra, ctx.scale, ctx.seen, ctx.parts = causal.extra, scale, seen, parts
        return out.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, out, lse, *states = ctx.saved_tensors
        keys, values = states[: len(states) // 2], states[len(states) // 2 :]
        with torch.autocast(query.device.type, enabled=False):
            whole = Causal(out, lse, ctx.extra)
            dquery, *first = _causal_backward(grad, query, keys[0], values[0], whole, ctx.seen, ctx.scale)
            dstates = [first]
            rows = (grad, query, lse, (grad.to(lse.dtype) * out).sum(-1) if ctx.parts else lse)
            for key, value, part in zip(keys[1:], values[1:], ctx.parts, strict=True):
                gradient, *later = _score_backward(rows, key, value, part, ctx.scale)
                _put(dquery, part.rows, _take(dquery, part.rows).add_(gradient))
                dstates.append(later)
        dkeys, dvalues = zip(*dstates, strict=True)
        return dquery.to(query.dtype), None, None, None, *(each.to(query.dtype) for each in (*dkeys, *dvalues))


def _causal(query: Tensor, key: Tensor, value: Tensor, seen: _Pairs, scale: float) -> Causal:
    """The queries from step s on against as many of the first step-0 keys; nothing where there are none."""
    if not seen.lengths:
        nothing = query[:, :, :0].to(_precise(query))
        return Causal(nothing, nothing[..., 0])
    states = _take(query, seen.rows), _take(key, seen.columns), _take(value, seen.columns)
    return _kernel(query, seen.lengths).forward(*states, scale)


def _causal_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, seen: _Pairs, scale: float
) -> Gradients:
    """Gradients of the whole query (in full precision where more is to be added), step-0 keys and values."""
    length = query.shape[2]
    if not seen.lengths:
        return torch.zeros_like(query, dtype=whole.lse.dtype), torch.zeros_like(key), torch.zeros_like(value)
    grad, rows, out, lse = (_take(states, seen.rows) for states in (grad, query, whole.out, whole.lse))
    columns = _take(key, seen.columns), _take(value, seen.columns)
    dq, dk, dv = _kernel(query, seen.lengths).backward(grad, rows, *columns, Causal(out, lse, whole.extra), scale)
    if sum(seen.lengths) == length:
        return dq, dk, dv
    dquery = _spread(dq.to(whole.lse.dtype), seen.rows, length)
    return dquery, _spread(dk, seen.columns, length), _spread(dv, seen.columns, length)


def _kernel(query: Tensor, lengths: tuple[int, ...]) -> Kernel:
    kernel = kernel_for(query.device, query.dtype, lengths)
    if kernel is None:
        raise ValueError(f"query: found {query.dtype} on {query.device}, expected one that torch ships a kernel for")
    return kernel


def _precise(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum of products over the last dim, in full precision: [B, K, H / K, n, e] to [B, K, H / K, n]."""
    return (first.to(_precise(first)) * second).sum(-1)


def _read(states: Tensor, part: _Pairs) -> Tensor:
    """What the rows read of keys or values, [B, K, 1, n, e], to meet the grouped query heads."""
    return _take(states, part.columns)[:, :, None]


def _score(query: Tensor, key: Tensor, part: _Pairs, scale: float) -> Tensor:
    """[B, H, n], of the part's rows."""
    return _dot(grouped(_take(query, part.rows), key.shape[1]), _read(key, part)).flatten(1, 2).mul_(scale)


def _merged_lse(causal: Tensor, scores: list[Tensor], seen: _Pairs, parts: list[_Pairs], length: int) -> Tensor:
    """[B, H, T] of the causal part and the scores, each on rows of its own."""
    if not scores:
        return causal
    every = causal.new_full((*causal.shape[:2], length, 1 + len(scores)), float("-inf"))
    for column, (each, part) in enumerate(zip((causal, *scores), (seen, *parts), strict=True)):
        every[:, :, part.rows, column] = each
    return torch.logsumexp(every, dim=-1)


def _merged_out(
    query: Tensor,
    causal: Causal,
    scores: list[Tensor],
    values: Sequence[Tensor],
    seen: _Pairs,
    parts: list[_Pairs],
    lse: Tensor,
) -> Tensor:
    """[B, H, T, e] in the causal part's dtype, summed in full precision."""
    if not parts:
        return causal.out
    out = torch.zeros_like(query, dtype=lse.dtype)
    out[:, :, seen.rows] = (causal.lse - _take(lse, seen.rows)).exp()[..., None] * causal.out
    for score, value, part in zip(scores, values, parts, strict=True):
        weight = grouped((score - _take(lse, part.rows)).exp(), value.shape[1])
        rows = _take(out, part.rows)
        grouped(rows, value.shape[1]).addcmul_(weight[..., None], _read(value, part).to(out.dtype))
        _put(out, part.rows, rows)
    return out.to(causal.out.dtype)


def _score_backward(
    rows: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor, value: Tensor, part: _Pairs, scale: float
) -> Gradients:
    """Gradients of one step's scores: of the query in the part's rows, and of its keys and values [B, K, T, e].

    Args:
        rows: grad [B, H, T, e], query [B, H, T, e], lse and delta [B, H, T].
        key: [B, K, T, e], as ``value``.
    """
    grad, query, lse, delta = (grouped(_take(states, part.rows), key.shape[1]) for states in rows)
    keys, values, length = _read(key, part), _read(value, part), key.shape[2]
    weight = (_dot(query, keys) * scale - lse).exp()
    dscore = (weight * (_dot(grad, values) - delta) * scale)[..., None]
    dkey, dvalue = (dscore * query).sum(2), (weight[..., None] * grad).sum(2)
    dquery = (dscore * keys).flatten(1, 2)
    return dquery, _spread(dkey, part.columns, length), _spread(dvalue, part.columns, length)
