"""What a TTT step is trained on: the KL divergence to the verifier on the rows in the loss; and the hits there.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps; N rows of a batch are in
the loss, C of them in one chunk.

Two ways give the same numbers. The eager one makes every logit [B, T, D] of every step and is written for reading. The
fused one makes those of rows in the loss alone, a chunk at a time, and takes the gradient on the way. Logits z of one
chunk give q = softmax(z), the divergence KL(t || q) = sum t log t - sum t z + logsumexp(z), and its gradient q - t,
which meets the head at once. What stays for the backward is [N, h] and, where the head trains, [D, h]: no TTT step
keeps a tensor of N * D entries. The verifier's probabilities are the one such tensor, made once a batch and read by all
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-5
"""Keeps the mean finite where no row is in the loss; both the prototypes and Speculators add it."""

TOP_K = 3

CHUNK = 1 << 22
"""Logits held at a time, 16 MiB of float32."""

ROWS = 640
"""But never fewer rows than this: the products with the head would be slow."""

COLUMNS = 1024
"""A CPU takes the product with the head this many columns at a time: MKL is up to a fifth slower on all at once."""

BLOCK = 512
"""Columns that a CPU searches at a time for the largest entries of a row."""


class LossImplementation(str, Enum):
    """``EAGER`` is written for reading, ``FUSED`` for speed and memory."""

    EAGER = "eager"
    FUSED = "fused"


@dataclass
class Hits:
    """Counts over the rows in the loss: ``top`` [3] rows whose target is among the draft's first 1, 2, 3; ``rows``."""

    correct: Tensor
    top: Tensor
    rows: Tensor


@dataclass
class Scores:
    """Sums over the rows in the loss: ``kl``, of one step or [k], with gradient; the others without, of the last step.

    ``entropies`` [2] are -sum t log q over all tokens and over the verifier's likeliest ones.
    """

    kl: Tensor
    hits: Hits
    entropies: Tensor


@dataclass
class Verifier:
    """What the target distribution t is made from.

    ``hidden`` [B, T, h] is the verifier's last hidden state after its final norm, shifted; ``head`` [D, h] its output
    head or the rows of the draft vocabulary; ``dtype`` that of their product.
    """

    hidden: Tensor
    head: Tensor
    dtype: torch.dtype = torch.float32

    @cached_property
    def logits(self) -> Tensor:
        """Over all positions, [B, T, D] float32, without gradient; computed when somebody asks."""
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            return F.linear(self.hidden.to(self.dtype), self.head.to(self.dtype)).float()

    @cached_property
    def probabilities(self) -> Tensor:
        """Their softmax."""
        return torch.softmax(self.logits, dim=-1)


def mean_over(total: Tensor, rows: Tensor) -> Tensor:
    """``total / (rows in the loss + 1e-5)``."""
    return total / (rows + EPSILON)


def undo_mean(mean: Tensor, rows: Tensor) -> Tensor:
    """The total that :func:`mean_over` divided."""
    return mean * (rows + EPSILON)


def kl_sum(logits: Tensor, probabilities: Tensor, rows: Tensor) -> Tensor:
    """Sum over ``rows`` [B, T] of KL(probabilities || softmax(logits)), 0 log 0 = 0, in float32."""
    log_q = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    divergence = F.kl_div(log_q, probabilities, reduction="none").sum(-1)
    return (divergence * rows).sum()


@torch.no_grad()
def count_hits(logits: Tensor, wanted: Tensor, rows: Tensor) -> Hits:
    """Greedy hits of ``wanted`` [B, T] on the rows in the loss, and how many of them are the draft's first three."""
    hit = logits.argmax(-1) == wanted
    first = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1).indices == wanted[..., None]
    top = (first & rows.bool()[..., None]).sum(dim=(0, 1)).cumsum(0)
    return Hits((hit & rows.bool()).sum(), top, rows.sum())


@torch.no_grad()
def cross_entropy_sums(logits: Tensor, probabilities: Tensor, rows: Tensor, topk: int) -> Tensor:
    """[2]: -sum t log q over the rows in the loss, over all tokens and over the verifier's ``topk`` likeliest.

    Args:
        logits: [B, T, D], the draft's.
        probabilities: [B, T, D], the verifier's.
        rows: [B, T], 1 on the rows in the loss.
        topk: at most D.
    """
    wanted = probabilities[rows.bool()]
    terms = -wanted * torch.log_softmax(logits[rows.bool()], dim=-1, dtype=torch.float32)
    likeliest = terms.gather(-1, wanted.topk(topk, dim=-1).indices)
    return torch.stack([terms.sum(), likeliest.sum()])


def eager_scores(logits: Sequence[Tensor], masks: Sequence[Tensor], verifier: Verifier, topk: int = 0) -> Scores:
    """Score every step from its ``logits`` [B, T, D] on the rows of its mask; arguments as in :func:`fused_scores`."""
    kl = torch.stack([kl_sum(each, verifier.probabilities, rows) for each, rows in zip(logits, masks)])
    last, rows = logits[-1].detach(), masks[-1]
    entropies = cross_entropy_sums(last, verifier.probabilities, rows, topk) if topk else kl.new_zeros(2)
    return Scores(kl, count_hits(last, verifier.logits.argmax(-1), rows), entropies)


def fused_scores(
    hidden: Sequence[Tensor],
    masks: Sequence[Tensor],
    verifier: Verifier,
    norm: Callable[[Tensor], Tensor],
    head: Tensor,
    topk: int = 0,
) -> Scores:
    """The same without all logits.

    Args:
        hidden: [B, T, h] of each step.
        masks: [B, T] for each step, 1 on its rows in the loss; those of the first step hold all others'.
        verifier: the target.
        norm, head: the draft's, from hidden states to logits.
        topk: how many of the verifier's likeliest tokens the second cross-entropy covers; 0 for neither of them.
    """
    rows = masks[0].flatten().nonzero().squeeze(1)
    target = TargetRows(verifier.hidden.flatten(0, 1)[rows], verifier.head, verifier.dtype)
    scored, last = [], len(hidden) - 1
    for step, (states, mask) in enumerate(zip(hidden, masks)):
        normed, weights = norm(states.flatten(0, 1)[rows]), mask.flatten()[rows]
        scored.append(fused_kl(normed, head, target, weights, step == last, topk if step == last else 0))
    return Scores(torch.stack([each.kl for each in scored]), scored[-1].hits, scored[-1].entropies)


class TargetRows:
    """The verifier's distribution t on the rows in the loss, without gradient.

    ``probabilities`` [N, D], ``wanted`` [N] int64 is the likeliest token, ``negentropy`` [N] is sum t log t. Everything
    but the product with the head is float32 (float64 where ``dtype`` is). ``buffer`` and ``spare`` [C, D] are room for
    the logits of one chunk and what is made of them, one for all steps: fresh pages cost more than a softmax.

    Args:
        hidden: [N, h], the verifier's last hidden state after its final norm, shifted.
        head: [D, h], the verifier's output head, or its rows for the draft vocabulary.
        dtype: of the product with the head.
    """

    def __init__(self, hidden: Tensor, head: Tensor, dtype: torch.dtype = torch.float32) -> None:
        count, precise = len(hidden), torch.promote_types(dtype, torch.float32)
        self.wanted = torch.empty(count, dtype=torch.int64, device=hidden.device)
        self.negentropy = torch.empty(count, dtype=precise, device=hidden.device)
        self.probabilities = self.negentropy.new_empty(count, len(head))
        chunk = next(_chunks(count, len(head)), slice(0, 0)).stop
        self.buffer, self.spare = (self.negentropy.new_empty(chunk, len(head)) for _ in range(2))
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            hidden, head = hidden.to(dtype), head.to(dtype)
            for rows in _chunks(count, len(head)):
                self._measure(rows, _product(hidden[rows], head, self.buffer))

    def _measure(self, rows: slice, logits: Tensor) -> None:
        probabilities = torch.softmax(logits, dim=-1, out=self.probabilities[rows])
        self.wanted[rows] = argmax(logits)
        logsumexp = logits.amax(-1) - probabilities.amax(-1).log()
        self.negentropy[rows] = logits.mul_(probabilities).sum(-1) - logsumexp


def fused_kl(
    hidden: Tensor, head: Tensor, target: TargetRows, weights: Tensor, hits: bool = False, topk: int = 0
) -> Scores:
    """Sum of ``weights`` * KL(t || softmax(hidden head^T)): :func:`kl_sum` with its gradients.

    The products with the head run in autocast's dtype where that is on, else in the head's own; the softmax and all
    that follows run in float32.

    Args:
        hidden: [N, h], normed.
        head: [D, h], trainable or frozen.
        target: of the same N rows.
        weights: [N], 1 on the rows that this TTT step trains on and 0 on the others (chain: positions before the step).
        hits: count them; costs a pass over the logits, as ``topk`` does. Otherwise they are 0.
        topk: sum the second cross-entropy over this many of the verifier's likeliest tokens. Otherwise it is 0.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
    sums = _Sums(target, weights.to(target.negentropy.dtype), hits, topk)
    kl = _FusedKL.apply(hidden.to(dtype), head.to(dtype), sums, torch.is_grad_enabled())
    return Scores(kl, Hits(sums.correct, sums.top, weights.sum()), sums.entropies)


class _FusedKL(torch.autograd.Function):
    """Loss and gradients in the forward; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, sums: _Sums, train: bool) -> Tensor:
        of_hidden = torch.empty_like(hidden) if train and ctx.needs_input_grad[0] else None
        of_head = torch.zeros_like(head, dtype=sums.kl.dtype) if train and ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), len(head)):
                logits = _product(hidden[rows], head, sums.target.buffer)
                sums.add(rows, logits)
                difference = logits.sub_(sums.target.probabilities[rows]).to(head.dtype)
                weights = sums.weights[rows, None].to(head.dtype)
                if of_hidden is not None:
                    of_hidden[rows] = (difference @ head) * weights
                if of_head is not None:
                    _accumulate(of_head, difference.t(), hidden[rows] * weights)
        ctx.save_for_backward(of_hidden, None if of_head is None else of_head.to(head.dtype))
        return sums.kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # in grad's float32: the factor 1 / rows rounded to bfloat16 would shift the whole gradient
        taken = [
            None if saved is None else (saved.to(grad.dtype) * grad).to(saved.dtype) for saved in ctx.saved_tensors
        ]
        return *taken, None, None


class _Sums:
    """The numbers reported, over the chunks seen so far."""

    def __init__(self, target: TargetRows, weights: Tensor, hits: bool, topk: int) -> None:
        self.target, self.weights, self.hits, self.topk = target, weights, hits, topk
        self.kl = weights.new_zeros(())
        self.entropies = weights.new_zeros(2)
        self.correct = target.wanted.new_zeros(())
        self.top = target.wanted.new_zeros(min(TOP_K, target.probabilities.shape[1]))

    def add(self, rows: slice, logits: Tensor) -> None:
        """Count one chunk; ``logits`` [C, D] hold their softmax afterwards."""
        weights, probabilities = self.weights[rows], self.target.probabilities[rows]
        if self.hits:
            self._count_hits(logits, self.target.wanted[rows], weights > 0)
        expected = torch.mul(probabilities, logits, out=self.target.spare[: len(logits)]).sum(-1)
        highest = logits.amax(-1)
        if self.topk:
            likeliest, columns = topk(probabilities, self.topk)
            scores = logits.gather(-1, columns)
        torch.softmax(logits, dim=-1, out=logits)
        logsumexp = highest - logits.amax(-1).log()
        entropies = logsumexp - expected
        self.kl += (weights * (entropies + self.target.negentropy[rows])).sum()
        self.entropies[0] += (weights * entropies).sum()
        if self.topk:
            self.entropies[1] += (likeliest * (logsumexp[:, None] - scores) * weights[:, None]).sum()

    def _count_hits(self, logits: Tensor, wanted: Tensor, counted: Tensor) -> None:
        self.correct += ((argmax(logits) == wanted) & counted).sum()
        first = topk(logits, len(self.top))[1] == wanted[:, None]
        self.top += (first & counted[:, None]).sum(0).cumsum(0)


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


def topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest entries of every row of ``values`` [C, D], largest first, and their columns: [C, count].

    On a CPU by way of the maxima of blocks, several times as fast as torch.topk: the k largest entries of a row lie in
    the k blocks with the largest maxima. As in torch.topk, which of several equal entries are taken is left open.
    """
    if not _in_blocks(values, count):
        return torch.topk(values, count, dim=-1)
    blocks = values.unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(count, dim=-1).indices
    candidates = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    largest, place = candidates.topk(count, dim=-1)
    return largest, chosen.gather(1, place // BLOCK) * BLOCK + place % BLOCK


def argmax(values: Tensor) -> Tensor:
    """The column of the largest entry of every row of ``values`` [C, D], the first of several: [C]."""
    if not _in_blocks(values, 1):
        return values.argmax(-1)
    blocks = values.unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).argmax(-1)
    within = blocks[torch.arange(len(values), device=values.device), chosen].argmax(-1)
    return chosen * BLOCK + within


def _in_blocks(values: Tensor, count: int) -> bool:
    """Is there more than is searched anyway, in whole blocks, on a device that gains from it?"""
    columns = values.shape[-1]
    return values.device.type == "cpu" and columns % BLOCK == 0 and columns > 2 * count * BLOCK
