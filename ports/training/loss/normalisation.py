"""What the loss of several processes is divided by: each process's own rows, or everybody's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ports.training.data.batches import Batch
from ports.training.loss.objective import Hits, mean_over, undo_mean


class RankNormalisation:
    """Every process divides by its own rows, and gradients are averaged: a process with few rows weighs them more."""

    def rows(self, window_rows: Tensor) -> Tensor:
        """Rows that a window's loss is divided by."""
        return window_rows

    def loss(self, backward_loss: Tensor) -> Tensor:
        """The loss to run backward on, given that gradients are averaged over the processes afterwards."""
        return backward_loss

    def report(self, outcome: Any, objective: Any, batch: Batch) -> Any:
        """What is logged: this process's numbers."""
        return outcome


class GlobalNormalisation(RankNormalisation):
    """All processes divide by the rows of all: the gradient, and what is logged, is that of one big batch."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def rows(self, window_rows: Tensor) -> Tensor:
        return self._sum(window_rows)

    def loss(self, backward_loss: Tensor) -> Tensor:
        return backward_loss * self.accelerator.num_processes

    @torch.no_grad()
    def report(self, outcome: Any, objective: Any, batch: Batch) -> Any:
        rows, losses = objective.rows(batch), outcome.step_losses.detach()
        everywhere = self._sum(rows)
        losses = mean_over(self._sum(undo_mean(losses, rows)), everywhere)
        extra = {name: self._mean(value, rows[-1], everywhere[-1]) for name, value in outcome.extra.items()}
        hits = Hits(*(self._sum(count) for count in (outcome.hits.correct, outcome.hits.top, outcome.hits.rows)))
        return replace(outcome, loss=objective.reported(losses), step_losses=losses, hits=hits, extra=extra)

    def _mean(self, value: float, rows: Tensor, everywhere: Tensor) -> float:
        total = undo_mean(torch.tensor(value, device=rows.device), rows)
        return float(mean_over(self._sum(total), everywhere))

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value.clone(), "sum")
        return total


def build_normalisation(kind: str, accelerator: Accelerator) -> RankNormalisation:
    """``rank`` or ``global``; one process has nothing to choose."""
    if kind == "global" and accelerator.num_processes > 1:
        return GlobalNormalisation(accelerator)
    return RankNormalisation()
