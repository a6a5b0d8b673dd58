"""What a TTT step is trained on: the verifier's distribution, the KL divergence on the rows in the loss, the hits.

Shapes: B batch, T positions, D the vocabulary the draft speaks, h hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ports.training.alignment import Alignment

EPSILON = 1e-5
"""Keeps the mean finite where no row is in the loss; both the prototypes and Speculators add it."""

TOP_K = 3


@dataclass
class Target:
    """The verifier's side of the loss: ``logits`` and ``probabilities`` [B, T, D], float32, without gradient."""

    logits: Tensor
    probabilities: Tensor


@dataclass
class Hits:
    """Counts over the rows in the loss: ``top`` [3] rows whose target is among the draft's first 1, 2, 3; ``rows``."""

    correct: Tensor
    top: Tensor
    rows: Tensor


def step_rows(loss_mask: Tensor, step: int, alignment: Alignment, positions: Tensor | None = None) -> Tensor:
    """The loss mask [B, T] of TTT step ``step``: unchanged (prototype), or without the rows p < step (chain).

    ``positions`` [1, T] are p, which a packed row counts from 0 in every document. Default: the columns.
    """
    if alignment is Alignment.PROTOTYPE or step == 0:
        return loss_mask
    if positions is None:
        positions = torch.arange(loss_mask.shape[1], device=loss_mask.device)[None]
    return loss_mask * (positions >= step)


def kl_sum(logits: Tensor, target: Target, rows: Tensor) -> Tensor:
    """Sum over ``rows`` of KL(target || softmax(logits)), 0 log 0 = 0, in float32."""
    log_q = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    divergence = F.kl_div(log_q, target.probabilities, reduction="none").sum(-1)
    return (divergence * rows).sum()


def mean_over(total: Tensor, rows: Tensor) -> Tensor:
    """``total / (rows in the loss + 1e-5)``."""
    return total / (rows + EPSILON)


def undo_mean(mean: Tensor, rows: Tensor) -> Tensor:
    """The total that :func:`mean_over` divided."""
    return mean * (rows + EPSILON)


@torch.no_grad()
def count_hits(logits: Tensor, target: Target, rows: Tensor) -> Hits:
    """Greedy hits on the rows in the loss, and how many targets lie in the draft's first three."""
    wanted = target.logits.argmax(-1)
    hit = logits.argmax(-1) == wanted
    first = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1).indices == wanted[..., None]
    top = (first & rows.bool()[..., None]).sum(dim=(0, 1)).cumsum(0)
    return Hits((hit & rows.bool()).sum(), top, rows.sum())


@torch.no_grad()
def cross_entropy_sums(logits: Tensor, target: Target, rows: Tensor, topk: int) -> Tensor:
    """[2]: -sum t log q over the rows in the loss, over all tokens and over the verifier's ``topk`` likeliest.

    Args:
        logits: [B, T, D], the draft's.
        target: the verifier's distribution.
        rows: [B, T], 1 on the rows in the loss.
        topk: at most D.
    """
    probabilities = target.probabilities[rows.bool()]
    terms = -probabilities * torch.log_softmax(logits[rows.bool()], dim=-1, dtype=torch.float32)
    likeliest = terms.gather(-1, probabilities.topk(topk, dim=-1).indices)
    return torch.stack([terms.sum(), likeliest.sum()])
