"""TTT attention in O(T) memory: one flash attention for the causal part, one dot product per row and earlier step.

Shapes: B batch, H query heads, K key/value heads, T positions, e head dim; s is the current TTT step, i one of 1..s.

The function is that of :func:`ports.training.attention.dense.ttt_attention`. Row p sees the step-0 keys of the columns
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
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ports.training.alignment import Alignment
from ports.training.attention.dense import attention_name, register, ttt_attention
from ports.training.attention.documents import documents_of
from ports.training.attention.flash_kernels import Causal, kernel_for


def fast_attention_name(alignment: Alignment) -> str:
    """What transformers knows this form by; with "flash" in the name it would look for the flash-attn package."""
    return f"{attention_name(alignment)}_fast"


def fast_ttt_attention(
    query: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    scale: float,
    alignment: Alignment,
) -> Tensor:
    """One step of TTT attention without a [T, T] tensor.

    Args:
        query: [B, H, T, e] of step s = ``len(keys) - 1``.
        keys, values: [B, K, T, e] for each step 0..s.
        mask: key padding [B, T], 1 on real positions, or None. With padding on the right no real row sees a padded
            column, so nothing needs masking. A packed row, see :mod:`ports.training.attention.documents`, is cut
            into its documents. Any other mask goes to the dense form.
        scale: factor on the scores, e^(-1/2).
        alignment: where the keys of steps 1..s are read.

    Returns:
        [B, H, T, e] in the query's dtype, in autocast in that dtype. Rows of padded positions are finite and mean
        nothing.
    """
    states = (query, *keys, *values)
    if mask is None or documents_of(mask).right_padded:
        return _attend_rows(states, scale, alignment)
    lengths = documents_of(mask).lengths
    if not lengths:
        return ttt_attention(query, keys, values, mask, scale, alignment)
    documents = zip(*(each.split(lengths, dim=2) for each in states))
    return torch.cat([_attend_rows(document, scale, alignment) for document in documents], dim=2)


def _attend_rows(states: Sequence[Tensor], scale: float, alignment: Alignment) -> Tensor:
    """Attention of rows that are one document each; ``states`` are the query, all keys and all values."""
    device = states[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states[0].dtype
    query, *others = (each.to(dtype) for each in states)
    out: Tensor = _MergedAttention.apply(query, scale, alignment, *others)
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
        return nn.functional.pad(gradient, (0, 0, self.first, self.distance - self.first))


def _parts(step: int, length: int, alignment: Alignment) -> list[_Part]:
    distances = [min(step - i, length) for i in range(1, step + 1)]
    return [_Part(distance, 0 if alignment is Alignment.CHAIN else distance) for distance in distances]


class _MergedAttention(torch.autograd.Function):
    """Causal flash attention and single scores under one softmax."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, scale: float, alignment: Alignment, *states: Tensor) -> Tensor:
        steps = len(states) // 2
        parts = _parts(steps - 1, query.shape[2], alignment)
        with torch.autocast(query.device.type, enabled=False):
            out, lse, ctx.extra = _attend(query, states[:steps], states[steps:], parts, scale)
        ctx.save_for_backward(query, out, lse, *states)
        ctx.scale, ctx.parts = scale, parts
        return out.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, out, lse, *states = ctx.saved_tensors
        whole, steps = Causal(out, lse, ctx.extra), len(states) // 2
        with torch.autocast(query.device.type, enabled=False):
            grads = _attend_backward(grad, query, states[:steps], states[steps:], whole, ctx.parts, ctx.scale)
        dquery, *dstates = (gradient.to(query.dtype) for gradient in grads)
        return dquery, None, None, *dstates


def _attend(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], parts: list[_Part], scale: float
) -> Causal:
    """Output, as wide as the kernel gives it, and log-sum-exp of the whole softmax; the kernel's own extra."""
    causal = _causal(query, keys[0], values[0], len(parts), scale)
    scores = [_score(query, key, part, scale) for key, part in zip(keys[1:], parts, strict=True)]
    lse = _merged_lse(causal.lse, scores, query.shape[2])
    return Causal(_merged_out(query, causal, scores, values[1:], parts, lse), lse, causal.extra)


def _attend_backward(
    grad: Tensor,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    whole: Causal,
    parts: list[_Part],
    scale: float,
) -> list[Tensor]:
    """Gradients of the query, of the keys and of the values."""
    dquery, dkey, dvalue = _causal_backward(grad, query, keys[0], values[0], whole, len(parts), scale)
    dkeys, dvalues = [dkey], [dvalue]
    rows = (grad, query, whole.lse, (grad.to(whole.lse.dtype) * whole.out).sum(-1) if parts else whole.lse)
    for key, value, part in zip(keys[1:], values[1:], parts, strict=True):
        gradient, dkey, dvalue = _score_backward(rows, key, value, part, scale)
        part.rows(dquery).add_(gradient)
        dkeys.append(dkey)
        dvalues.append(dvalue)
    return [dquery, *dkeys, *dvalues]


def _causal(query: Tensor, key: Tensor, value: Tensor, step: int, scale: float) -> Causal:
    """The queries from ``step`` on against as many of the first step-0 keys; nothing where there are none."""
    seen = max(query.shape[2] - step, 0)
    if seen == 0:
        return Causal(query[:, :, :0].to(_precise(query)), query.new_empty(*query.shape[:2], 0, dtype=_precise(query)))
    kernel = kernel_for(query.device, query.dtype)
    return kernel.forward(query[:, :, step:], key[:, :, :seen], value[:, :, :seen], scale)


def _causal_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, step: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the whole query (in full precision where more is to be added), step-0 keys and values."""
    seen = max(query.shape[2] - step, 0)
    if seen == 0:
        return torch.zeros_like(query, dtype=whole.lse.dtype), torch.zeros_like(key), torch.zeros_like(value)
    kernel, rows = kernel_for(query.device, query.dtype), (slice(None), slice(None), slice(step, None))
    part = Causal(whole.out[rows], whole.lse[rows], whole.extra)
    dq, dk, dv = kernel.backward(grad[rows], query[rows], key[:, :, :seen], value[:, :, :seen], part, scale)
    if step == 0:
        return dq, dk, dv
    full = torch.zeros_like(query, dtype=whole.lse.dtype)
    full[rows] = dq
    return full, _pad_rows(dk, step), _pad_rows(dv, step)


def _pad_rows(states: Tensor, count: int) -> Tensor:
    return nn.functional.pad(states, (0, 0, 0, count))


def _precise(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum of products over the last dim, in full precision: [B, K, H / K, T, e] to [B, K, H / K, T]."""
    return (first.to(_precise(first)) * second).sum(-1)


def _grouped(states: Tensor, groups: int) -> Tensor:
    """[B, H, ...] as [B, K, H / K, ...]."""
    return states.unflatten(1, (groups, -1))


def _score(query: Tensor, key: Tensor, part: _Part, scale: float) -> Tensor:
    """[B, H, T - distance]."""
    return _dot(_grouped(part.rows(query), key.shape[1]), part.columns(key)).flatten(1, 2).mul_(scale)


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
        weight = _grouped((score - part.rows(lse)).exp(), value.shape[1])
        _grouped(part.rows(out), value.shape[1]).addcmul_(weight[..., None], part.columns(value).to(out.dtype))
    return out.to(causal.out.dtype)


def _score_backward(
    rows: tuple[Tensor, Tensor, Tensor, Tensor], key: Tensor, value: Tensor, part: _Part, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one step's scores: of the query in rows distance.., and of its keys and values [B, K, T, e].

    Args:
        rows: grad [B, H, T, e], query [B, H, T, e], lse and delta [B, H, T].
        key: [B, K, T, e], as ``value``.
    """
    grad, query, lse, delta = (_grouped(part.rows(states), key.shape[1]) for states in rows)
    weight = (_dot(query, part.columns(key)) * scale - lse).exp()
    dscore = (weight * (_dot(grad, part.columns(value)) - delta) * scale)[..., None]
    dkey, dvalue = (dscore * query).sum(2), (weight[..., None] * grad).sum(2)
    dquery = (dscore * part.columns(key)).flatten(1, 2)
    return dquery, part.spread(dkey), part.spread(dvalue)


for _alignment in Alignment:
    register(fast_attention_name(_alignment), fast_ttt_attention, _alignment)
