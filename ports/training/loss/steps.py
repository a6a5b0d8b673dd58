"""What a draft gives at every TTT step, and an objective for every micro-batch.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ports.training.loss.objective import Hits

Head = Callable[[Tensor], Tensor]
"""From a step's hidden states [B, T, h] to its logits [B, T, D]."""


@dataclass
class Step:
    """One TTT step: ``hidden_in`` and ``hidden`` [B, T, h] before and after the layers.

    The fused loss never makes all logits, so they are computed when somebody asks, in the precision of the forward.
    """

    hidden_in: Tensor
    hidden: Tensor
    head: Head

    @cached_property
    def logits(self) -> Tensor:
        """[B, T, D]."""
        return self.head(self.hidden)


def in_this_precision(head: Head, device: str) -> Head:
    """``head`` under the autocast that is in force now, whenever it is called."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def call(hidden: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=enabled):
            return head(hidden)

    return call


def next_hidden(hidden: Tensor, out: Tensor, first: Tensor | None = None) -> Tensor:
    """The next step's input [B, T, h]: the output moved one position to the right, the first position unchanged.

    ``first`` [1, T] bool marks the first position of every document of a packed row. Default: there is one a row.
    """
    moved = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
    return moved if first is None else torch.where(first[..., None], hidden, moved)


@dataclass
class Outcome:
    """One micro-batch: the loss to run backward on, what is reported, and the tensors it came from.

    ``step_losses`` [k] are still attached to the graph, ``loss`` is not. ``target`` has ``logits`` and
    ``probabilities`` [B, T, D] of the verifier. ``extra`` are metrics that only some objectives log.
    """

    backward_loss: Tensor
    loss: Tensor
    step_losses: Tensor
    hits: Hits
    target: Any
    steps: list[Step]
    extra: dict[str, float] = field(default_factory=dict)


torch.export.register_dataclass(Outcome)
"""FSDP2 prepares the backward of the tensors that a forward returns, and torch 2.9 finds none in other dataclasses."""
