"""What a reference forward gives, the loss both algorithms share, and what they log besides.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Step:
    """One TTT step: ``hidden_in``, ``hidden`` [B, T, h], ``logits`` [B, T, D], ``loss`` scalar."""

    hidden_in: Tensor
    hidden: Tensor
    logits: Tensor
    loss: Tensor


@dataclass
class Unrolled:
    """A forward: the steps, the verifier's distribution [B, T, D], the loss as reported and the backwards to run.

    ``backward`` lists the losses that get a backward of their own, in order; their gradients add up.
    """

    steps: Sequence[Step]
    target_p: Tensor
    loss: Tensor
    backward: Sequence[Tensor]
    logged: dict[str, float] = field(default_factory=dict)


def kl_loss(logits: Tensor, target_p: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of KL(target || softmax(logits)) over the rows in the loss, 0 log 0 = 0."""
    divergence = torch.special.xlogy(target_p, target_p) - target_p * log_softmax(logits)
    return masked_mean(divergence.sum(-1), loss_mask)


def log_softmax(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def masked_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum over the rows in the loss, by their number + 1e-5."""
    return (values * loss_mask).sum() / (loss_mask.sum() + 1e-5)
