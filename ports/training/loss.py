"""What a TTT step is trained on: the KL divergence to the verifier on the rows in the loss; hits there, and chains.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps; N rows of a batch are in
the loss, C of them in one chunk.

Two ways give the same numbers. The eager one makes every logit [B, T, D] of every step and is written for reading. The
fused one makes those of rows in the loss alone, a chunk at a time, and takes the gradient on the way. For one chunk the
verifier's probabilities t are made once and read by all steps. A step's logits z give q = softmax(z), the divergence
KL(t || q) = sum t log t - sum t z + logsumexp(z), and its gradient q - t, which meets the head at once. What stays for
the backward is [k, N, h] and, where the head trains, [k, D, h]: nothing of rows times vocabulary outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ports.training.masks import rows_in_loss
from ports.training.shared_compute import product_dtype
from ports.verifier.logits import VerifierHead

EPSILON = 1e-5
"""Keeps the mean finite where no row is in the loss; both the prototypes and Speculators add it."""

TOP_K = 3

CHUNK, CARD_CHUNK = 1 << 22, 1 << 27
"""Logits held at a time on a CPU, 16 MiB of float32; and on other devices, 512 MiB: launching kernels then takes little
of the time, by reckoning, for no card has measured it."""

ROWS = 640
"""But never fewer rows than this: the products with the head would be slow."""


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
    head or the rows of the draft vocabulary, or what gives logits where there is more to it than a product (scales,
    caps, biases); ``dtype`` that of the product.
    """

    hidden: Tensor
    head: Tensor | VerifierHead
    dtype: torch.dtype = torch.float32

    @property
    def vocabulary(self) -> int:
        """How many tokens it speaks, D."""
        return len(self.head if isinstance(self.head, Tensor) else self.head.weight)

    @cached_property
    def logits(self) -> Tensor:
        """Over all positions, [B, T, D] float32, without gradient; computed when somebody asks."""
        if not isinstance(self.head, Tensor):
            return self.head(self.hidden)
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            return F.linear(self.hidden.to(self.dtype), self.head.to(self.dtype)).float()

    @cached_property
    def probabilities(self) -> Tensor:
        """Their softmax."""
        return torch.softmax(self.logits, dim=-1)


def mean_over(total: Tensor, rows: Tensor) -> Tensor:
    """``total / (rows in the loss + 1e-5)``."""
    return total / (rows + EPSILON)


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


def count_chains(right: Tensor, inside: Tensor) -> Tensor:
    """[2, k]: chains that came to place s with all before it accepted, and those whose token there was accepted too.

    In chain alignment row q + s of TTT step s holds the token that a chain from row q proposes in place s. Every row in
    the loss starts a chain, which ends with the answer it lies in; the tokens before a proposal are the record's.

    Args:
        right: [k, B, T] bool, by row: did step s give the verifier's token?
        inside: [B, T], not 0 on the rows in the loss.
    """
    alive, counts = inside.bool(), []
    for step, hits in enumerate(right):
        reached = alive & _ahead(inside.bool(), step)
        alive = reached & _ahead(hits, step)
        counts.append(torch.stack([reached.sum(), alive.sum()]))
    return torch.stack(counts, dim=1)


def _ahead(values: Tensor, step: int) -> Tensor:
    """``values[:, q + step]`` at q, False past the end."""
    return F.pad(values[:, step:], (0, min(step, values.shape[1])))


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
    rows = rows_in_loss(masks[0]).inside
    target = Verifier(verifier.hidden.flatten(0, 1)[rows], verifier.head, verifier.dtype)
    normed = torch.stack([norm(states.flatten(0, 1)[rows]) for states in hidden])
    return fused_kl(normed, head, target, torch.stack([mask.flatten()[rows] for mask in masks]), topk)


def fused_kl(hidden: Tensor, head: Tensor, verifier: Verifier, weights: Tensor, topk: int = 0) -> Scores:
    """Sums of ``weights`` * KL(t || softmax(hidden head^T)) for every step: :func:`kl_sum` with its gradients.

    The products with the head run in autocast's dtype where that is on, else in the head's own; the softmax and all
    that follows run in float32.

    Args:
        hidden: [k, N, h], normed.
        head: [D, h], trainable or frozen.
        verifier: the target, its ``hidden`` [N, h] of the same rows.
        weights: [k, N], 1 on the rows that a TTT step trains on, 0 on the others (chain: positions before the step).
        topk: as in :func:`fused_scores`.
    """
    chunks = _Chunks(verifier, weights, topk)
    kl = _FusedKL.apply(hidden, head, chunks, product_dtype(head), torch.is_grad_enabled())
    return Scores(kl, Hits(chunks.correct, chunks.top, weights[-1].sum()), chunks.entropies)


class _FusedKL(torch.autograd.Function):
    """Loss and gradients in the forward; the backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, chunks: _Chunks, dtype: torch.dtype, train: bool) -> Tensor:
        own, trained = head.to(dtype), [train and needed for needed in ctx.needs_input_grad[:2]]
        of_hidden = torch.empty_like(hidden, dtype=dtype) if trained[0] else None
        of_head = chunks.kl.new_zeros(len(hidden), *head.shape) if trained[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks.targets():
                for step, states in enumerate(hidden[:, rows].to(dtype)):
                    difference = chunks.difference(step, rows, chunks.product(states, own)).to(dtype)
                    weights = chunks.weights[step, rows, None].to(dtype)
                    if of_hidden is not None:
                        of_hidden[step, rows] = (difference @ own) * weights
                    if of_head is not None:
                        _accumulate(of_head[step], difference.t(), states * weights)
        ctx.save_for_backward(of_hidden, of_head)
        ctx.dtypes = hidden.dtype, head.dtype
        return chunks.kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # in grad's float32: the factor 1 / rows rounded to bfloat16 would shift the whole gradient
        of_hidden, of_head = ctx.saved_tensors
        if of_hidden is not None:
            of_hidden = (of_hidden * grad[:, None, None]).to(ctx.dtypes[0])
        if of_head is not None:
            of_head = reduce(torch.Tensor.add_, map(torch.mul, reversed(of_head.unbind()), reversed(grad.unbind())))
            of_head = of_head.to(ctx.dtypes[1])
        return of_hidden, of_head, None, None, None


class _Chunks:
    """The rows of a batch, a chunk of C at a time, and the sums reported over those seen so far.

    ``buffer``, ``spare`` and ``probabilities`` [C, D] are room for the logits of one step, for what is made of them and
    for the verifier's distribution, the same for all: fresh pages cost more than a softmax. Everything but the products
    with the heads is float32 (float64 where the verifier's product is).
    """

    def __init__(self, verifier: Verifier, weights: Tensor, topk: int) -> None:
        self.verifier, self.topk = verifier, topk
        self.weights = weights.to(torch.promote_types(verifier.dtype, torch.float32))
        (steps, self.count), self.vocabulary = weights.shape, verifier.vocabulary
        self.kl, self.entropies = self.weights.new_zeros(steps), self.weights.new_zeros(2)
        self.correct = torch.zeros((), dtype=torch.int64, device=weights.device)
        self.top = self.correct.new_zeros(min(TOP_K, self.vocabulary))
        most = max(ROWS, (CHUNK if weights.device.type == "cpu" else CARD_CHUNK) // self.vocabulary)
        self.size = -(-self.count // -(-self.count // most)) if self.count else 1
        room = min(self.size, self.count), self.vocabulary
        self.buffer, self.spare, self.probabilities = (self.weights.new_empty(room) for _ in range(3))

    def targets(self) -> Iterator[slice]:
        """The chunks, of one size but for the last, each with the verifier's distribution made."""
        hidden, head = self.verifier.hidden, self.verifier.head
        if isinstance(head, Tensor):
            hidden, head = hidden.to(self.verifier.dtype), head.to(self.verifier.dtype)
        for start in range(0, self.count, self.size):
            rows = slice(start, min(start + self.size, self.count))
            logits = self.product(hidden[rows], head)
            self.target = torch.softmax(logits, dim=-1, out=self.probabilities[: len(logits)])
            self.wanted = logits.argmax(-1)
            logsumexp = logits.amax(-1) - self.target.amax(-1).log()
            self.negentropy = logits.mul_(self.target).sum(-1) - logsumexp
            yield rows

    def product(self, hidden: Tensor, head: Tensor | VerifierHead) -> Tensor:
        """Logits [C, D] of ``hidden`` [C, h], in the buffer and in its dtype."""
        logits = self.buffer[: len(hidden)]
        if not isinstance(head, Tensor):
            return logits.copy_(head(hidden))
        if head.dtype == logits.dtype:
            return torch.mm(hidden, head.t(), out=logits)
        narrow = self.spare.flatten().view(head.dtype)[: logits.numel()].view(logits.shape)
        return logits.copy_(torch.mm(hidden, head.t(), out=narrow))

    def difference(self, step: int, rows: slice, logits: Tensor) -> Tensor:
        """Count a step's ``logits`` [C, D], and make them q - t in their place."""
        weights, last = self.weights[step, rows], step == len(self.kl) - 1
        if last:
            self._count_hits(logits, weights > 0)
        expected = torch.mul(self.target, logits, out=self.spare[: len(logits)]).sum(-1)
        highest = logits.amax(-1)
        if last and self.topk:
            likeliest, columns = self.target.topk(self.topk, dim=-1)
            scores = logits.gather(-1, columns)
        torch.softmax(logits, dim=-1, out=logits)
        logsumexp = highest - logits.amax(-1).log()
        entropies = logsumexp - expected
        self.kl[step] += (weights * (entropies + self.negentropy)).sum()
        if last and self.topk:
            self.entropies[0] += (weights * entropies).sum()
            self.entropies[1] += (likeliest * (logsumexp[:, None] - scores) * weights[:, None]).sum()
        return logits.sub_(self.target)

    def _count_hits(self, logits: Tensor, counted: Tensor) -> None:
        self.correct += ((logits.argmax(-1) == self.wanted) & counted).sum()
        first = logits.topk(len(self.top), dim=-1).indices == self.wanted[:, None]
        self.top += (first & counted[:, None]).sum(0).cumsum(0)


def _accumulate(total: Tensor, first: Tensor, second: Tensor) -> None:
    if total.dtype == first.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second
