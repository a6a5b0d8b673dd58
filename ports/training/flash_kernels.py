"""Causal attention in O(T) memory that also gives its log-sum-exp, and the backward that takes one.

Shapes: B batch, H query heads, K key/value heads (a divisor of H), L positions, e head dim. Queries and keys have the
same L; row p sees the columns j <= p.

A backward gets the output and log-sum-exp of the *whole* softmax, of which the causal scores may be only a part: the
weights ``exp(score - lse)`` and the row sums ``grad . out`` are then the whole softmax's, and so are the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

ATEN = torch.ops.aten


class Causal(NamedTuple):
    """``out`` [B, H, L, e] in the query's dtype or a wider one, ``lse`` [B, H, L] in float32 (float64 for float64).

    The backward wants ``out`` in the dtype it came in, and ``extra`` back.
    """

    out: Tensor
    lse: Tensor
    extra: tuple[Any, ...] = ()


Gradients = tuple[Tensor, Tensor, Tensor]
"""Of query [B, H, L, e], key and value [B, K, L, e]."""


class Kernel(Protocol):
    """One implementation; ``query`` [B, H, L, e], ``key`` and ``value`` [B, K, L, e], all of one dtype."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        """Attention over the columns j <= p."""

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        """Gradients through the causal columns, given the output and log-sum-exp of the whole softmax."""


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The fastest kernel that this device and dtype have."""
    if device.type == "cuda" and torch.version.hip is None:
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        if ampere and dtype in (torch.float16, torch.bfloat16):
            return CudaFlash()
        if dtype is torch.float32:
            return CudaEfficient()
    return Blocked()


class CudaFlash:
    """FlashAttention-2 as torch ships it: half precision, head dims in eights, grouped heads as they are."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        inputs = (_in_eights(states) for states in (query, key, value))
        out, lse, *extra = ATEN._scaled_dot_product_flash_attention(*inputs, 0.0, True, False, scale=scale)
        return Causal(out[..., : query.shape[-1]], lse, tuple(extra))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        inputs = (_in_eights(states) for states in (grad, query, key, value, whole.out))
        cum_q, cum_k, max_q, max_k, seed, offset, *_ = whole.extra
        grads = ATEN._scaled_dot_product_flash_attention_backward(
            *inputs, whole.lse.contiguous(), cum_q, cum_k, max_q, max_k, 0.0, True, seed, offset, scale=scale
        )
        width = query.shape[-1]
        return grads[0][..., :width], grads[1][..., :width], grads[2][..., :width]


class CudaEfficient:
    """The memory-efficient kernel: float32 too, but every query head needs its own key head."""

    ROWS = 32
    """The kernel's log-sum-exp is padded to a multiple of this."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        key, value = (repeat_heads(states, query.shape[1]) for states in (key, value))
        inputs = (_in_eights(states) for states in (query, key, value))
        out, lse, *extra = ATEN._scaled_dot_product_efficient_attention(*inputs, None, True, 0.0, True, scale=scale)
        return Causal(out[..., : query.shape[-1]], lse[..., : query.shape[2]], tuple(extra))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        wide = (repeat_heads(states, query.shape[1]) for states in (key, value))
        grad, *inputs, out = (_in_eights(states) for states in (grad, query, *wide, whole.out))
        lse = F.pad(whole.lse, (0, -query.shape[2] % self.ROWS), value=float("inf"))
        wanted = [True, True, True, False]
        grads = ATEN._scaled_dot_product_efficient_attention_backward(
            grad, *inputs, None, out, lse, *whole.extra, 0.0, wanted, True, scale=scale
        )
        dq, dk, dv = (states[..., : query.shape[-1]] for states in grads[:3])
        return dq, _reduce(dk, key.shape[1]), _reduce(dv, key.shape[1])


def grouped(states: Tensor, groups: int) -> Tensor:
    """[B, H, ...] as [B, K, H / K, ...], K = ``groups``."""
    return states.unflatten(1, (groups, -1))


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """[B, K, ...] as [B, H, ...], H = ``heads``."""
    groups = heads // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _reduce(states: Tensor, heads: int) -> Tensor:
    return states if states.shape[1] == heads else grouped(states, heads).sum(2)


def _in_eights(states: Tensor) -> Tensor:
    """Zeros behind the last dim until it is a multiple of 8; scores and outputs do not change."""
    return F.pad(states, (0, -states.shape[-1] % 8)) if states.shape[-1] % 8 else states


ROWS = 256
"""Rows of a block of :class:`Blocked`."""

TILE = 1 << 18
"""Scores it holds at a time, 1 MiB of float32; more where ROWS rows of one key head need more."""


class Blocked:
    """Plain torch for every device and dtype: a block of rows at a time, against all columns it sees.

    On a CPU this is 10 to 20 % faster than torch's own flash kernel from a few hundred positions on: products of 256
    rows, and a softmax instead of a bare exponential. A block's softmax is its own; the backward scales the incoming
    gradient by exp(own log-sum-exp - log-sum-exp of the whole), the weight of the causal part in the whole. Outputs and
    gradients are float32 for half precision.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        work = _Work(query, key, value, scale)
        out, lse = torch.empty_like(work.query), torch.empty_like(work.query[..., 0])
        for block in work.blocks():
            scores = work.scores(block)
            highest = scores.amax(-1)
            weights = torch.softmax(scores, dim=-1, out=scores)
            block.write(out, torch.bmm(weights, block.columns(work.value)))
            block.write(lse, highest - weights.amax(-1).log())
        lse = lse.view(query.shape[:3])
        return Causal(out.view(query.shape), lse, (lse,))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        work, (own,) = _Work(query, key, value, scale), whole.extra
        grad = grad * (own - whole.lse).exp()[..., None]
        delta = _by_key_head((grad * whole.out).sum(-1, keepdim=True), key.shape[1])
        grad, dq = _by_key_head(grad, key.shape[1]), torch.zeros_like(work.query)
        # [N, e, L]: the product that fills it is a third faster than the one for [N, L, e]
        dk, dv = (states.new_zeros(states.transpose(1, 2).shape) for states in (work.key, work.value))
        spare = torch.empty_like(work.buffer)
        for block in work.blocks():
            rows = block.rows(grad)
            if _is_silent(rows):
                continue
            scores = work.scores(block)
            weights = torch.softmax(scores, dim=-1, out=scores)
            dv[block.heads, :, : block.stop].baddbmm_(rows.transpose(1, 2), weights)
            dscores = spare[: weights.numel()].view(weights.shape)
            torch.baddbmm(block.rows(delta), rows, block.columns(work.value).transpose(1, 2), beta=-1, out=dscores)
            dscores.mul_(weights)
            dk[block.heads, :, : block.stop].baddbmm_(block.rows(work.query).transpose(1, 2), dscores, alpha=scale)
            block.write(dq, torch.bmm(dscores, block.columns(work.key)).mul_(scale))
        return dq.view(query.shape), dk.transpose(1, 2).view(key.shape), dv.transpose(1, 2).view(value.shape)


class _Block(NamedTuple):
    """Rows start..stop of n of the N = B K key heads: R = H / K * (stop - start) rows, heads below each other."""

    heads: slice
    start: int
    stop: int

    def rows(self, states: Tensor) -> Tensor:
        """The block's rows of [N, H / K, L, ...] as [n, R, ...]."""
        return states[self.heads, :, self.start : self.stop].flatten(1, 2)

    def write(self, states: Tensor, rows: Tensor) -> None:
        """``rows`` [n, R, ...] back to their place in [N, H / K, L, ...]."""
        into = states[self.heads, :, self.start : self.stop]
        into.copy_(rows.view(into.shape))

    def columns(self, states: Tensor) -> Tensor:
        """The columns [n, S, e] of [N, L, e] that the block sees, S = stop."""
        return states[self.heads, : self.stop]


class _Work:
    """The inputs by key head, query [N, H / K, L, e], key and value [N, L, e], and room for one block's scores."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
        precise = torch.promote_types(query.dtype, torch.float32)
        self.query = _by_key_head(query.to(precise), key.shape[1])
        self.key, self.value = (states.to(precise).flatten(0, 1) for states in (key, value))
        self.scale, self.length = scale, query.shape[2]
        self.count, self.groups = self.query.shape[:2]
        self.rows = min(self.length, max(1, ROWS // self.groups))
        self.heads = max(1, min(self.count, TILE // (self.groups * self.rows * self.length)))
        self.buffer = self.query.new_empty(self.heads * self.groups * self.rows * self.length)

    def blocks(self) -> Iterator[_Block]:
        for head in range(0, self.count, self.heads):
            heads = slice(head, min(head + self.heads, self.count))
            for start in range(0, self.length, self.rows):
                yield _Block(heads, start, min(start + self.rows, self.length))

    def scores(self, block: _Block) -> Tensor:
        """[n, R, S] in the buffer, -inf where a row does not see the column."""
        rows, columns = block.rows(self.query), block.columns(self.key)
        shape = (*rows.shape[:2], block.stop)
        scores = self.buffer[: rows.shape[0] * rows.shape[1] * block.stop].view(shape)
        torch.baddbmm(scores, rows, columns.transpose(1, 2), beta=0, alpha=self.scale, out=scores)
        height = block.stop - block.start
        unseen = torch.ones(height, height, dtype=torch.bool, device=scores.device).triu_(1)
        scores.unflatten(1, (self.groups, height))[..., block.start :].masked_fill_(unseen, float("-inf"))
        return scores


def _is_silent(grad: Tensor) -> bool:
    """Are these rows in no loss (a prompt's)? Only a CPU tells without waiting."""
    return grad.device.type == "cpu" and not bool(grad.any())


def _by_key_head(states: Tensor, heads: int) -> Tensor:
    """[B, H, L, ...] as [N, H / K, L, ...]."""
    return grouped(states, heads).flatten(0, 1)
