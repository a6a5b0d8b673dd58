"""From the steps of an unroll to sums over the rows in the loss: the readable way, and the fused one.

Both give the same numbers. The eager way makes every logit [B, T, D] of every step; the fused one only those of rows in
the loss, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ports.training.loss.fused_loss import Extras, FusedLoss, TargetRows, fused_kl
from ports.training.loss.objective import Hits, Target, count_hits, cross_entropy_sums, kl_sum
from ports.training.loss.steps import Step


class LossImplementation(str, Enum):
    """``EAGER`` is written for reading, ``FUSED`` for speed and memory."""

    EAGER = "eager"
    FUSED = "fused"


@dataclass
class Verifier:
    """What the target distribution is made from.

    ``hidden`` [B, T, h] is the verifier's last hidden state, shifted; ``head`` [D, h] its output head or the rows of
    the draft vocabulary; ``dtype`` that of their product.
    """

    hidden: Tensor
    head: Tensor
    dtype: torch.dtype = torch.float32

    @cached_property
    def target(self) -> Target:
        """Over all positions, [B, T, D] float32; computed when somebody asks."""
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            logits = F.linear(self.hidden.to(self.dtype), self.head.to(self.dtype)).float()
            return Target(logits, torch.softmax(logits, dim=-1))

    @property
    def logits(self) -> Tensor:
        return self.target.logits

    @property
    def probabilities(self) -> Tensor:
        return self.target.probabilities


@dataclass
class Scores:
    """Sums over the rows in the loss: ``kl`` [k] with gradient; of the last step its hits and cross-entropies [2]."""

    kl: Tensor
    hits: Hits
    entropies: Tensor


def score(
    steps: Sequence[Step],
    masks: Sequence[Tensor],
    verifier: Verifier,
    norm: Callable[[Tensor], Tensor],
    head: Tensor,
    implementation: LossImplementation,
    topk: int = 0,
) -> Scores:
    """Score every step against the verifier.

    Args:
        steps: of the unroll.
        masks: [B, T] for each step, 1 on its rows in the loss; those of the first step hold all others'.
        verifier: the target.
        norm, head: the draft's, from hidden states to logits.
        implementation: which way.
        topk: how many of the verifier's likeliest tokens the second cross-entropy covers; 0 for neither of them.
    """
    if implementation is LossImplementation.EAGER:
        return _eager(steps, masks, verifier.target, topk)
    return _fused(steps, masks, verifier, norm, head, topk)


def _eager(steps: Sequence[Step], masks: Sequence[Tensor], target: Target, topk: int) -> Scores:
    sums = [kl_sum(step.logits, target, rows) for step, rows in zip(steps, masks)]
    last = steps[-1].logits.detach()
    entropies = cross_entropy_sums(last, target, masks[-1], topk) if topk else sums[0].new_zeros(2)
    return Scores(torch.stack(sums), count_hits(last, target, masks[-1]), entropies)


def _fused(
    steps: Sequence[Step],
    masks: Sequence[Tensor],
    verifier: Verifier,
    norm: Callable[[Tensor], Tensor],
    head: Tensor,
    topk: int,
) -> Scores:
    rows = masks[0].flatten().nonzero().squeeze(1)
    target = TargetRows(verifier.hidden.flatten(0, 1)[rows], verifier.head, dtype=verifier.dtype)
    scored: list[FusedLoss] = []
    for number, (step, mask) in enumerate(zip(steps, masks)):
        last = number == len(steps) - 1
        hidden = norm(step.hidden.flatten(0, 1)[rows])
        scored.append(fused_kl(hidden, head, target, mask.flatten()[rows], Extras(last, topk if last else 0)))
    final = scored[-1]
    return Scores(torch.stack([each.kl for each in scored]), final.hits, torch.stack([final.cross_entropy, final.topk]))
