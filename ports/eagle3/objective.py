"""The Eagle3 objective: the plain sum over TTT steps of the masked mean KL divergence, one backward through all."""

from __future__ import annotations

import copy

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn

from ports.eagle3.model import unroll
from ports.training.alignment import Alignment
from ports.training.batches import Batch
from ports.training.objective import mean_over, step_rows
from ports.training.scoring import LossImplementation, Verifier, score
from ports.training.steps import Outcome


class Eagle3Objective(nn.Module):
    """The draft with its loss as one module, so that DDP and DeepSpeed see a single forward.

    The verifier's head rows stay in float32 and outside the module's parameters: a cast of the module to bfloat16 must
    not touch the target distribution.
    """

    def __init__(
        self,
        draft: Eagle3DraftModel,
        ttt_steps: int,
        alignment: Alignment = Alignment.PROTOTYPE,
        implementation: LossImplementation = LossImplementation.FUSED,
    ) -> None:
        super().__init__()
        self.draft = draft
        self.ttt_steps = ttt_steps
        self.alignment = alignment
        self.implementation = implementation
        self._outside = {"head": draft.verifier_lm_head.weight.detach()}

    def rows(self, batch: Batch) -> Tensor:
        """Rows in the loss at every TTT step, [k] int64."""
        return torch.stack([rows.sum() for rows in self._masks(batch)])

    def forward(self, batch: Batch, window_rows: Tensor | None = None) -> Outcome:
        """Unroll and score one micro-batch.

        Args:
            batch: see :data:`ports.training.batches.Batch`.
            window_rows: [k], rows in the loss of the whole accumulation window at every step. The loss to run backward
                on is divided by them, so that the accumulated gradient is the big batch's. Default: this batch's own.
        """
        verifier = Verifier(batch["target"], self._head(batch["target"].device))
        steps = unroll(self.draft, batch["features"], batch["input_ids"], batch["attention_mask"], self.ttt_steps)
        head = self.draft.lm_head.weight
        scores = score(steps, self._masks(batch), verifier, self.draft.norm, head, self.implementation)
        losses = mean_over(scores.kl, self.rows(batch))
        backward = losses.sum() if window_rows is None else mean_over(scores.kl, window_rows).sum()
        return Outcome(backward, self.reported(losses), losses, scores.hits, verifier, steps)

    def reported(self, losses: Tensor) -> Tensor:
        """The one loss that stands for those of the k steps: their sum."""
        return losses.detach().sum()

    def _masks(self, batch: Batch) -> list[Tensor]:
        return [step_rows(batch["loss_mask"], step, self.alignment) for step in range(self.ttt_steps)]

    def after_cast(self) -> None:
        """Give the rotary embedding its float32 frequencies back after the module was cast (DeepSpeed does)."""
        rotary = self.draft.rotary_emb
        fresh = type(rotary)(copy.copy(rotary.config))
        rotary.inv_freq = fresh.inv_freq.to(rotary.inv_freq.device)

    def _head(self, device: torch.device) -> Tensor:
        if self._outside["head"].device != device:
            self._outside["head"] = self._outside["head"].to(device)
        return self._outside["head"]
