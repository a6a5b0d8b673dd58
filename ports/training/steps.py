"""What a draft gives at every TTT step, and an objective for every micro-batch.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ports.training.objective import Hits, Target


@dataclass
class Step:
    """One TTT step: ``hidden_in`` and ``hidden`` [B, T, h] before and after the layers, ``logits`` [B, T, D]."""

    hidden_in: Tensor
    hidden: Tensor
    logits: Tensor


def next_hidden(hidden: Tensor, out: Tensor) -> Tensor:
    """The next step's input [B, T, h]: the output moved one position to the right, the first position unchanged."""
    return torch.cat([hidden[:, :1], out[:, :-1]], dim=1)


@dataclass
class Outcome:
    """One micro-batch: the loss to run backward on, what is reported, and the tensors it came from.

    ``step_losses`` [k] are still attached to the graph, ``loss`` is not. ``extra`` are metrics that only some
    objectives log.
    """

    backward_loss: Tensor
    loss: Tensor
    step_losses: Tensor
    hits: Hits
    target: Target
    steps: list[Step]
    extra: dict[str, float] = field(default_factory=dict)
