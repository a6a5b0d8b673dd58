"""The HASS objective: masked mean KL at every TTT step; gradients add up over the steps, the report is their mean.

Shapes: B batch, T positions, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ports.hass.model import HassDraftModel
from ports.training.batches import Batch
from ports.training.objective import Target, count_hits, kl_sum, mean_over, step_rows
from ports.training.steps import Outcome


class HassObjective(nn.Module):
    """The draft with its loss as one module.

    A step's input is detached, so one backward through the sum of the steps' losses adds up what a backward after each
    step would give.
    """

    def __init__(self, draft: HassDraftModel, ttt_steps: int, topk: int = 10) -> None:
        super().__init__()
        self.draft = draft
        self.ttt_steps = ttt_steps
        self.topk = topk

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
        target, masks = self._target(batch["target"]), self._masks(batch)
        steps = self.draft(batch["features"], batch["input_ids"], batch["attention_mask"], self.ttt_steps)
        sums = torch.stack([kl_sum(step.logits, target, rows) for step, rows in zip(steps, masks)])
        losses = mean_over(sums, self.rows(batch))
        backward = losses.sum() if window_rows is None else mean_over(sums, window_rows).sum()
        hits = count_hits(steps[-1].logits, target, masks[-1])
        extra = cross_entropies(steps[-1].logits, target, masks[-1], self.topk)
        return Outcome(backward, self.reported(losses), losses, hits, target, steps, extra)

    def reported(self, losses: Tensor) -> Tensor:
        """The one loss that stands for those of the k steps: their mean."""
        return losses.detach().mean()

    def after_cast(self) -> None:
        """Nothing to restore: HASS trains in float32, under autocast if at all."""

    def _masks(self, batch: Batch) -> list[Tensor]:
        return [step_rows(batch["loss_mask"], step, self.draft.alignment) for step in range(self.ttt_steps)]

    @torch.no_grad()
    def _target(self, hidden: Tensor) -> Target:
        """The verifier's distribution over all of V; its head runs in autocast like the draft's."""
        logits = self.draft.lm_head(hidden).float()
        return Target(logits, torch.softmax(logits, dim=-1))


@torch.no_grad()
def cross_entropies(logits: Tensor, target: Target, rows: Tensor, topk: int) -> dict[str, float]:
    """Logged, never trained on: masked mean cross-entropy over V, and over the verifier's ``topk`` likeliest tokens.

    Args:
        logits: [B, T, V], the draft's.
        target: the verifier's distribution.
        rows: [B, T], 1 on the rows in the loss.
        topk: at most V.
    """
    chosen, count = rows.bool(), rows.sum()
    probabilities = target.probabilities[chosen]
    terms = -probabilities * torch.log_softmax(logits[chosen], dim=-1, dtype=torch.float32)
    likeliest = terms.gather(-1, probabilities.topk(topk, dim=-1).indices)
    losses = {"train/ploss": terms.sum(), "train/topkloss": likeliest.sum()}
    return {name: mean_over(total, count).item() for name, total in losses.items()}
