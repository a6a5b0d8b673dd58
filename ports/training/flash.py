"""TTT attention in O(T) memory: one flash attention for the causal part, one dot product per row and earlier step.

Shapes: B batch, H query heads, K key/value heads, T positions, e head dim; s is the current TTT step, i one of 1..s.

The function is that of :func:`ports.training.attention.ttt_attention`. Row p sees the step-0 keys of the columns
j <= p - s: the queries from s on meet the first T - s keys in a plain causal attention. Each step i adds one score.
With the log-sum-exp of both parts the two softmaxes merge into one, exactly:

    lse = log(exp(lse_causal) + sum_i exp(score_i))
    out = exp(lse_causal - lse) out_causal + sum_i exp(score_i - lse) v_i

The gradient of a softmax needs, beside a score itself, only its row's log-sum-exp and ``delta = grad . out``. The flash
backward takes both from its arguments, so with the merged pair it gives the exact gradients of the causal part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ports.training.alignment import Alignment
from ports.training.flash_kernels import Causal, Gradients, Kernel, grouped, kernel_for
from ports.training.tuning import product_dtype


def attend_documents(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float, alignment: Alignment
) -> Tensor:
    """One step of TTT attention of rows that are one document each, where :func:`kernel_for` knows a kernel.

    Args:
        query: [B, H, T, e] of step s = ``len(keys) - 1``.
        keys, values: [B, K, T, e] for each step 0..s.
        scale: factor on the scores, e^(-1/2).
        alignment: where the keys of steps 1..s are read.

    Returns:
        [B, H, T, e] in the query's dtype, in autocast in that dtype.
    """
    dtype = product_dtype(query)
    states = (each.to(dtype) for each in (*keys, *values))
    out: Tensor = _MergedAttention.apply(query.to(dtype), scale, alignment, *states)
    return out


class _Part(NamedTuple):
    """A step i >= 1: its scores stand in rows ``distance``.. and read its keys and values from ``first`` on."""

    distance: int
    first: int

    def rows(self, states: Tensor) -> Tensor:
        return states[:, :, self.distance :]

    def columns(self, states: Tensor) -> Tensor:
        """[B, K, 1, T - distance, e], to meet the grouped query heads."""
        return states[:, :, None, self.first : self.first + states.shape[2] - self.distance]

    def spread(self, gradient: Tensor) -> Tensor:
        """From [B, K, T - distance, e] back to [B, K, T, e], zero where nobody read."""
        return F.pad(gradient, (0, 0, self.first, self.distance - self.first))


def _parts(step: int, length: int, alignment: Alignment) -> list[_Part]:
    distances = [min(step - i, length) for i in range(1, step + 1)]
    return [_Part(distance, 0 if alignment is Alignment.CHAIN else distance) for distance in distances]


class _MergedAttention(torch.autograd.Function):
    """Causal flash attention and single scores under one softmax."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, scale: float, alignment: Alignment, *states: Tensor) -> Tensor:
        keys, values = states[: len(states) // 2], states[len(states) // 2 :]
        parts = _parts(len(keys) - 1, query.shape[2], alignment)
        with torch.autocast(query.device.type, enabled=False):
            causal = _causal(query, keys[0], values[0], len(parts), scale)
            scores = [_score(query, key, part, scale) for key, part in zip(keys[1:], parts, strict=True)]
            lse = _merged_lse(causal.lse, scores, query.shape[2])
            out = _merged_out(query, causal, scores, values[1:], parts, lse)
        ctx.save_for_backward(query, out, lse, *states)
        ctx.extra, ctx.scale, ctx.parts = causal.extra, scale, parts
        return out.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, out, lse, *states = ctx.saved_tensors
        keys, values = states[: len(states) // 2], states[len(states) // 2 :]
        with torch.autocast(query.device.type, enabled=False):
            whole = Causal(out, lse, ctx.extra)
            dquery, *first = _causal_backward(grad, query, keys[0], values[0], whole, len(ctx.parts), ctx.scale)
            dstates = [first]
            rows = (grad, query, lse, (grad.to(lse.dtype) * out).sum(-1) if ctx.parts else lse)
            for key, value, part in zip(keys[1:], values[1:], ctx.parts, strict=True):
                gradient, *later = _score_backward(rows, key, value, part, ctx.scale)
                part.rows(dquery).add_(gradient)
                dstates.append(later)
        dkeys, dvalues = zip(*dstates, strict=True)
        return dquery.to(query.dtype), None, None, *(each.to(query.dtype) for each in (*dkeys, *dvalues))


def _causal(query: Tensor, key: Tensor, value: Tensor, step: int, scale: float) -> Causal:
    """The queries from ``step`` on against as many of the first step-0 keys; nothing where there are none."""
    seen = max(query.shape[2] - step, 0)
    if seen == 0:
        nothing = query[:, :, :0].to(_precise(query))
        return Causal(nothing, nothing[..., 0])
    return _kernel(query).forward(query[:, :, step:], key[:, :, :seen], value[:, :, :seen], scale)


def _causal_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, step: int, scale: float
) -> Gradients:
    """Gradients of the whole query (in full precision where more is to be added), step-0 keys and values."""
    seen = max(query.shape[2] - step, 0)
    if seen == 0:
        return torch.zeros_like(query, dtype=whole.lse.dtype), torch.zeros_like(key), torch.zeros_like(value)
    grad, rows, out, lse = (states[:, :, step:] for states in (grad, query, whole.out, whole.lse))
    causal = Causal(out, lse, whole.extra)
    dq, dk, dv = _kernel(query).backward(grad, rows, key[:, :, :seen], value[:, :, :seen], causal, scale)
    if step == 0:
        return dq, dk, dv
    dquery = torch.zeros_like(query, dtype=whole.lse.dtype)
    dquery[:, :, step:] = dq
    return dquery, F.pad(dk, (0, 0, 0, step)), F.pad(dv, (0, 0, 0, step))


def _kernel(query: Tensor) -> Kernel:
    kernel = kernel_for(query.device, query.dtype)
    if kernel is None:
        raise ValueError(f"query: found {query.dtype} on {query.device}, expected one that torch ships a kernel for")
    return kernel


def _precise(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum of products over the last dim, in full precision: [B, K, H / K, T, e] to [B, K, H / K, T]."""
    return (first.to(_precise(first)) * second).sum(-1)


def _score(query: Tensor, key: Tensor, part: _Part, scale: float) -> Tensor:
    """[B, H, T - distance]."""
    return _dot(grouped(part.rows(query), key.shape[1]), part.columns(key)).flatten(1, 2).mul_(scale)


def _merged_lse(causal: Tensor, scores: list[Tensor], length: int) -> Tensor:
    """[B, H, T] from the causal [B, H, T - step] and the scores, which end at the last row, too."""
    if not scores:
        return causal
    every = causal.new_full((*causal.shape[:2], length, 1 + len(scores)), float("-inf"))
    for column, part in enumerate((causal, *scores)):
        every[:, :, length - part.shape[2] :, column] = part
    return torch.logsumexp(every, dim=-1)


def _merged_out(
    query: Tensor, causal: Causal, scores: list[Tensor], values: Sequence[Tensor], parts: list[_Part], lse: Tensor
) -> Tensor:
    """[B, H, T, e] in the causal part's dtype, summed in full precision."""
    if not parts:
        return causal.out
    out = torch.zeros_like(query, dtype=lse.dtype)
    rows = query.shape[2] - causal.lse.shape[2]
    out[:, :, rows:] = (causal.lse - lse[:, :, rows:]).exp()[..., None] * causal.out
    for score, value, part in zip(scores, values, parts, strict=True):
        weight = grouped((score - part.rows(lse)).exp(), value.shape[1])
        grouped(part.rows(out), value.shape[1]).addcmul_(weight[..., None], part.columns(value).to(out.dtype))
    return out.to(causal.out.dtype)


def _score_backward(
    rows: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor, value: Tensor, part: _Part, scale: float
) -> Gradients:
    """Gradients of one step's scores: of the query in rows distance.., and of its keys and values [B, K, T, e].

    Args:
        rows: grad [B, H, T, e], query [B, H, T, e], lse and delta [B, H, T].
        key: [B, K, T, e], as ``value``.
    """
    grad, query, lse, delta = (grouped(part.rows(states), key.shape[1]) for states in rows)
    weight = (_dot(query, part.columns(key)) * scale - lse).exp()
    dscore = (weight * (_dot(grad, part.columns(value)) - delta) * scale)[..., None]
    dkey, dvalue = (dscore * query).sum(2), (weight[..., None] * grad).sum(2)
    dquery = (dscore * part.columns(key)).flatten(1, 2)
    return dquery, part.spread(dkey), part.spread(dvalue)
