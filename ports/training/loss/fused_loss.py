"""Head, KL divergence and hits over a few rows at a time, with the gradient taken on the way.

Shapes: N rows of a batch are in the loss, h hidden size, D the vocabulary the draft speaks, C rows of one chunk.

Logits z of one chunk give q = softmax(z), the divergence KL(t || q) = sum t log t - sum t z + logsumexp(z), and its
gradient q - t, which meets the head at once. What stays for the backward is [N, h] and, where the head trains, [D, h]:
no TTT step keeps a tensor of N * D entries.

The verifier's probabilities are the one [N, D] tensor, made once a batch and read by all steps. To make them again in
every chunk costs another product with the verifier's head, a third of what a step's loss costs without it;
``TargetRows(..., keep=False)`` pays that where N * D does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ports.training.loss.likeliest import argmax, topk
from ports.training.loss.objective import TOP_K, Hits

CHUNK = 1 << 22
"""Logits held at a time, 16 MiB of float32."""

ROWS = 640
"""But never fewer rows than this: the products with the head would be slow."""

COLUMNS = 1024
"""A CPU takes the product with the head this many columns at a time: MKL is up to a fifth slower on all at once."""


class TargetRows:
    """The verifier's distribution t on the rows in the loss, without gradient.

    ``wanted`` [N] int64 is its likeliest token, ``negentropy`` [N] is sum t log t. Everything but the product with the
    head is float32 (float64 where ``dtype`` is).

    Args:
        hidden: [N, h], the verifier's last hidden state after its final norm, shifted.
        head: [D, h], the verifier's output head, or its rows for the draft vocabulary.
        keep: hold the probabilities; otherwise every step computes them again.
        dtype: of the product with the head.
    """

    def __init__(self, hidden: Tensor, head: Tensor, keep: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self._hidden, self._head = hidden.detach().to(dtype), head.detach().to(dtype)
        count, precise = len(hidden), torch.promote_types(dtype, torch.float32)
        self.wanted = torch.empty(count, dtype=torch.int64, device=hidden.device)
        self.negentropy = torch.empty(count, dtype=precise, device=hidden.device)
        self._kept = self.negentropy.new_empty(count, len(head)) if keep else None
        for rows in _chunks(count, len(head)):
            self._measure(rows)

    def probabilities(self, rows: slice) -> Tensor:
        """[C, D], not to be written to."""
        if self._kept is not None:
            return self._kept[rows]
        logits = self._logits(rows, self._again)
        return torch.softmax(logits, dim=-1, out=logits)

    @cached_property
    def buffer(self) -> Tensor:
        """Room for the logits of one chunk, [C, D], and one for all steps: fresh pages cost more than a softmax."""
        vocabulary = len(self._head)
        rows = next(_chunks(len(self.wanted), vocabulary), slice(0, 0))
        return self.negentropy.new_empty(rows.stop, vocabulary)

    @cached_property
    def spare(self) -> Tensor:
        """As much room again, for what is made of the logits."""
        return torch.empty_like(self.buffer)

    @cached_property
    def _again(self) -> Tensor:
        return torch.empty_like(self.buffer)

    @torch.no_grad()
    def _measure(self, rows: slice) -> None:
        logits = self._logits(rows, self.buffer)
        probabilities = torch.softmax(logits, dim=-1, out=None if self._kept is None else self._kept[rows])
        self.wanted[rows] = argmax(logits)
        logsumexp = logits.amax(-1) - probabilities.amax(-1).log()
        self.negentropy[rows] = logits.mul_(probabilities).sum(-1) - logsumexp

    @torch.no_grad()
    def _logits(self, rows: slice, buffer: Tensor) -> Tensor:
        with torch.autocast(self._hidden.device.type, enabled=False):
            return _product(self._hidden[rows], self._head, buffer)


@dataclass(frozen=True)
class Extras:
    """What a step reports beside its loss; both cost a pass over the logits."""

    hits: bool = False
    topk: int = 0
    """Sum the cross-entropy over this many of the verifier's likeliest tokens."""


@dataclass
class FusedLoss:
    """Sums over the rows in the loss: ``kl`` with gradient, the others without.

    ``cross_entropy`` is -sum t log q, ``topk`` the same over the verifier's likeliest tokens. Hits and ``topk`` are 0
    where not asked for.
    """

    kl: Tensor
    hits: Hits
    cross_entropy: Tensor
    topk: Tensor


def fused_kl(
    hidden: Tensor, head: Tensor, target: TargetRows, weights: Tensor, extras: Extras | None = None
) -> FusedLoss:
    """Sum of ``weights`` * KL(t || softmax(hidden head^T)): ``kl_sum`` of :mod:`ports.training.loss.objective`.

    The products with the head run in autocast's dtype where that is on, else in the head's own; the softmax and all
    that follows run in float32.

    Args:
        hidden: [N, h], normed.
        head: [D, h], trainable or frozen.
        target: of the same N rows.
        weights: [N], 1 on the rows that this TTT step trains on and 0 on the others (chain: positions before the step).
        extras: what else to count. Default: nothing.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
    job = _Job(target, weights.to(target.negentropy.dtype), extras or Extras(), torch.is_grad_enabled())
    kl, correct, top, entropies = _FusedKL.apply(hidden.to(dtype), head.to(dtype), job)
    return FusedLoss(kl, Hits(correct, top, weights.sum()), entropies[0], entropies[1])


@dataclass(frozen=True)
class _Job:
    target: TargetRows
    weights: Tensor
    extras: Extras
    train: bool


class _FusedKL(torch.autograd.Function):
    """Loss and gradients in the forward; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, job: _Job) -> tuple[Tensor, ...]:
        sums, grads = _Sums(job, len(head)), _Gradients(hidden, head, job, ctx.needs_input_grad)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), len(head)):
                logits = _product(hidden[rows], head, job.target.buffer)
                probabilities = job.target.probabilities(rows)
                sums.add(rows, logits, probabilities)
                grads.add(rows, logits.sub_(probabilities))
        ctx.save_for_backward(*grads.taken)
        ctx.mark_non_differentiable(sums.correct, sums.top, sums.entropies)
        return sums.kl, sums.correct, sums.top, sums.entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # in grad's float32: the factor 1 / rows rounded to bfloat16 would shift the whole gradient
        taken = [
            None if saved is None else (saved.to(grad.dtype) * grad).to(saved.dtype) for saved in ctx.saved_tensors
        ]
        return taken[0], taken[1], None


class _Sums:
    """The numbers reported, over the chunks seen so far."""

    def __init__(self, job: _Job, vocabulary: int) -> None:
        self.job = job
        self.kl = job.weights.new_zeros(())
        self.entropies = job.weights.new_zeros(2)
        self.correct = job.target.wanted.new_zeros(())
        self.top = job.target.wanted.new_zeros(min(TOP_K, vocabulary))

    def add(self, rows: slice, logits: Tensor, probabilities: Tensor) -> None:
        """Count one chunk; ``logits`` [C, D] hold their softmax afterwards."""
        weights, extras = self.job.weights[rows], self.job.extras
        if extras.hits:
            self._count_hits(logits, self.job.target.wanted[rows], weights > 0)
        expected = torch.mul(probabilities, logits, out=self.job.target.spare[: len(logits)]).sum(-1)
        highest = logits.amax(-1)
        likeliest = topk(probabilities, extras.topk) if extras.topk else None
        scores = None if likeliest is None else logits.gather(-1, likeliest[1])
        torch.softmax(logits, dim=-1, out=logits)
        logsumexp = highest - logits.amax(-1).log()
        entropies = logsumexp - expected
        self.kl += (weights * (entropies + self.job.target.negentropy[rows])).sum()
        self.entropies[0] += (weights * entropies).sum()
        if likeliest is not None and scores is not None:
            self.entropies[1] += (likeliest[0] * (logsumexp[:, None] - scores) * weights[:, None]).sum()

    def _count_hits(self, logits: Tensor, wanted: Tensor, counted: Tensor) -> None:
        self.correct += ((argmax(logits) == wanted) & counted).sum()
        first = topk(logits, len(self.top))[1] == wanted[:, None]
        self.top += (first & counted[:, None]).sum(0).cumsum(0)


class _Gradients:
    """Of the sum, with respect to hidden rows [N, h] and head [D, h]; None where nobody asks."""

    def __init__(self, hidden: Tensor, head: Tensor, job: _Job, needed: tuple[bool, ...]) -> None:
        self.hidden, self.head, self.weights = hidden, head, job.weights
        self.of_hidden = torch.empty_like(hidden) if job.train and needed[0] else None
        self.of_head = torch.zeros_like(head, dtype=job.weights.dtype) if job.train and needed[1] else None

    def add(self, rows: slice, difference: Tensor) -> None:
        """Of one chunk, from q - t [C, D]."""
        weights, difference = self.weights[rows, None], difference.to(self.head.dtype)
        if self.of_hidden is not None:
            self.of_hidden[rows] = (difference @ self.head) * weights.to(self.head.dtype)
        if self.of_head is not None:
            weighted = self.hidden[rows] * weights.to(self.hidden.dtype)
            _accumulate(self.of_head, difference.t(), weighted)

    @property
    def taken(self) -> tuple[Tensor | None, Tensor | None]:
        return self.of_hidden, None if self.of_head is None else self.of_head.to(self.head.dtype)


def _product(hidden: Tensor, head: Tensor, buffer: Tensor) -> Tensor:
    """Logits [C, D] of ``hidden`` [C, h], in the buffer and in its dtype."""
    logits = buffer[: len(hidden)]
    if head.dtype != buffer.dtype:
        return logits.copy_(F.linear(hidden, head))
    width = COLUMNS if hidden.device.type == "cpu" else len(head)
    for start in range(0, len(head), width):
        columns = slice(start, start + width)
        torch.mm(hidden, head[columns].t(), out=logits[:, columns])
    return logits


def _accumulate(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


def _chunks(count: int, vocabulary: int) -> Iterator[slice]:
    """Slices of ``count`` rows, of one size but for the last."""
    most = max(ROWS, CHUNK // vocabulary)
    size = -(-count // -(-count // most)) if count else 1
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
