"""A draft with its loss as one module: what the objectives of all algorithms share.

Shapes: B batch, T positions, h hidden size, D the vocabulary the draft speaks, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ports.training.alignment import Alignment
from ports.training.attention.documents import documents_of
from ports.training.data.batches import Batch, rows_mask
from ports.training.loss.objective import mean_over, step_rows
from ports.training.loss.scoring import LossImplementation, Scores, Verifier, score
from ports.training.loss.steps import Outcome, Step


class TTTObjective(nn.Module):
    """One module, so that DDP and DeepSpeed see a single forward.

    An algorithm says how its draft unrolls, what the target is, what turns hidden states into logits, and which number
    stands for the steps' losses. With ``recompute`` no activations of the draft's layers are kept.
    """

    topk = 0
    """How many of the verifier's likeliest tokens the logged cross-entropy covers; 0 logs none."""

    def __init__(
        self,
        draft: Any,
        ttt_steps: int,
        alignment: Alignment,
        implementation: LossImplementation,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.draft = draft
        self.ttt_steps = ttt_steps
        self.alignment = alignment
        self.implementation = implementation

    def unroll(self, batch: Batch) -> list[Step]:
        """The draft's k steps on a micro-batch."""
        raise NotImplementedError

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target distribution from the verifier's last hidden state [B, T, h]."""
        raise NotImplementedError

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The draft's norm and the weight [D, h] of its head."""
        raise NotImplementedError

    def total(self, losses: Tensor) -> Tensor:
        """The one loss to run backward on, from those of the k steps: a sum with fixed weights."""
        return losses.sum()

    def reported(self, losses: Tensor) -> Tensor:
        """The one loss that stands for those of the k steps."""
        raise NotImplementedError

    def after_cast(self) -> None:
        """Restore what a cast of the module must not touch; called once everything is prepared."""

    def rows(self, batch: Batch) -> Tensor:
        """Rows in the loss at every TTT step, [k] int64."""
        return torch.stack([rows.sum() for rows in self._masks(batch)])

    def forward(self, batch: Batch, window_rows: Tensor | None = None) -> Outcome:
        """Unroll and score one micro-batch.

        Args:
            batch: see :data:`ports.training.data.batches.Batch`.
            window_rows: [k], rows in the loss of the whole accumulation window at every step. The loss to run backward
                on is divided by them, so that the accumulated gradient is the big batch's. Default: this batch's own.
        """
        verifier, masks, rows = self.verifier(batch["target"]), self._masks(batch), self.rows(batch)
        steps = self.unroll(batch)
        scores = score(steps, masks, verifier, *self.output(), self.implementation, self.topk)
        losses = mean_over(scores.kl, rows)
        backward = self.total(losses if window_rows is None else mean_over(scores.kl, window_rows))
        extra = self._logged(scores, rows[-1])
        return Outcome(backward, self.reported(losses), losses, scores.hits, verifier, steps, extra)

    def _masks(self, batch: Batch) -> list[Tensor]:
        positions = documents_of(rows_mask(batch)).positions
        return [step_rows(batch["loss_mask"], step, self.alignment, positions) for step in range(self.ttt_steps)]

    def _logged(self, scores: Scores, rows: Tensor) -> dict[str, float]:
        if not self.topk:
            return {}
        return dict(zip(("train/ploss", "train/topkloss"), mean_over(scores.entropies, rows).tolist()))
