"""The HASS objective: masked mean KL at every TTT step; gradients add up over the steps, the report is their mean.

Shapes: B batch, T positions, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ports.hass.model import HassDraftModel
from ports.training.batches import Batch
from ports.training.objective import mean_over, step_rows
from ports.training.scoring import LossImplementation, Verifier, score
from ports.training.steps import Outcome


class HassObjective(nn.Module):
    """The draft with its loss as one module.

    A step's input is detached, so one backward through the sum of the steps' losses adds up what a backward after each
    step would give.
    """

    def __init__(
        self,
        draft: HassDraftModel,
        ttt_steps: int,
        topk: int = 10,
        implementation: LossImplementation = LossImplementation.FUSED,
    ) -> None:
        super().__init__()
        self.draft = draft
        self.ttt_steps = ttt_steps
        self.topk = topk
        self.implementation = implementation

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
        verifier, masks = self._verifier(batch["target"]), self._masks(batch)
        steps = self.draft(batch["features"], batch["input_ids"], batch["attention_mask"], self.ttt_steps)
        norm, head = self.draft.lm_head_layernorm, self.draft.lm_head.weight
        scores = score(steps, masks, verifier, norm, head, self.implementation, self.topk)
        losses = mean_over(scores.kl, self.rows(batch))
        backward = losses.sum() if window_rows is None else mean_over(scores.kl, window_rows).sum()
        entropies = mean_over(scores.entropies, masks[-1].sum()).tolist()
        extra = dict(zip(("train/ploss", "train/topkloss"), entropies))
        return Outcome(backward, self.reported(losses), losses, scores.hits, verifier, steps, extra)

    def reported(self, losses: Tensor) -> Tensor:
        """The one loss that stands for those of the k steps: their mean."""
        return losses.detach().mean()

    def after_cast(self) -> None:
        """Nothing to restore: HASS trains in float32, under autocast if at all."""

    def _masks(self, batch: Batch) -> list[Tensor]:
        return [step_rows(batch["loss_mask"], step, self.draft.alignment) for step in range(self.ttt_steps)]

    def _verifier(self, hidden: Tensor) -> Verifier:
        """The target over all of V; its head runs in autocast like the draft's."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return Verifier(hidden, self.draft.lm_head.weight.detach(), dtype)
