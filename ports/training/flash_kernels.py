"""Causal attention in O(T) memory that also gives its log-sum-exp, and the backward that takes one.

Shapes: B batch, H query heads, K key/value heads (a divisor of H), L positions, e head dim. Queries and keys have the
same L; row p sees the columns j <= p.

A backward gets the output and log-sum-exp of the *whole* softmax, of which the causal scores may be only a part: the
weights ``exp(score - lse)`` and the row sums ``grad . out`` are then the whole softmax's, and so are the gradients.
"""

from __future__ import annotations

from itertools import accumulate
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


def kernel_for(device: torch.device, dtype: torch.dtype, lengths: tuple[int, ...] = ()) -> Kernel | None:
    """The fastest kernel that this device and dtype have; None where torch ships none that gives its log-sum-exp.

    ``lengths``, if several, are those of the documents of a packed row, L in all: the kernel then takes B = 1, and row
    p sees its own document.
    """
    packed = len(lengths) > 1
    if device.type == "cpu":
        return None if packed else CpuFlash()
    if device.type == "cuda" and torch.version.hip is None:
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        if ampere and dtype in (torch.float16, torch.bfloat16):
            return CudaFlashPacked(lengths) if packed else CudaFlash()
        if dtype in (torch.float16, torch.float32):
            return None if packed else CudaEfficient()
    return None


class CpuFlash:
    """Torch's flash attention for a CPU: every dtype, grouped heads repeated for releases of torch that need it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        wide = (repeat_heads(states, query.shape[1]) for states in (key, value))
        return Causal(*ATEN._scaled_dot_product_flash_attention_for_cpu(query, *wide, 0.0, True, scale=scale))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        inputs = grad, query, *(repeat_heads(states, query.shape[1]) for states in (key, value)), whole.out, whole.lse
        dq, dk, dv = ATEN._scaled_dot_product_flash_attention_for_cpu_backward(*inputs, 0.0, True, scale=scale)
        return dq, _reduce(dk, key.shape[1]), _reduce(dv, key.shape[1])


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
    """The memory-efficient kernel: older cards and float32 too, but every query head needs its own key head."""

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


class CudaFlashPacked:
    """:class:`CudaFlash` over a packed row in one call, by the documents' borders (``cu_seqlens``)."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Causal:
        inputs = (_tokens_first(states) for states in (query, key, value))
        out, lse, *extra = ATEN._flash_attention_forward(*inputs, *self._borders(query), 0.0, True, False, scale=scale)
        return Causal(_heads_first(out, query), lse[None], tuple(extra))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, whole: Causal, scale: float
    ) -> Gradients:
        inputs = (_tokens_first(states) for states in (grad, query, key, value, whole.out))
        lse, (seed, offset, _) = whole.lse[0].contiguous(), whole.extra
        grads = ATEN._flash_attention_backward(
            *inputs, lse, *self._borders(query), 0.0, True, seed, offset, scale=scale
        )
        dq, dk, dv = (_heads_first(each, query) for each in grads)
        return dq, dk, dv

    def _borders(self, query: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """Of the documents in queries and keys, [D + 1] int32, and the longest of either."""
        ends = torch.tensor([*accumulate(self.lengths, initial=0)], dtype=torch.int32)
        ends = ends.to(query.device, non_blocking=True)
        return ends, ends, max(self.lengths), max(self.lengths)


def _tokens_first(states: Tensor) -> Tensor:
    """[1, H, L, e] as [L, H, e], e a multiple of 8."""
    return _in_eights(states)[0].transpose(0, 1)


def _heads_first(states: Tensor, like: Tensor) -> Tensor:
    """[L, H, 8n] as [1, H, L, e], e that of ``like``."""
    return states.transpose(0, 1)[None, ..., : like.shape[-1]]


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
