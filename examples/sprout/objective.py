"""The Sprout objective: the masked mean KL divergence of every TTT step, summed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ports.training.alignment import Alignment
from ports.training.data import Batch, rows_mask
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import Step, TTTObjective
from sprout.model import SproutModel


class SproutObjective(TTTObjective):
    """One backward through all steps."""

    def __init__(
        self,
        draft: SproutModel,
        ttt_steps: int,
        alignment: Alignment = Alignment.PROTOTYPE,
        implementation: LossImplementation = LossImplementation.FUSED,
    ) -> None:
        super().__init__(draft, ttt_steps, alignment, implementation)

    def unroll(self, batch: Batch) -> list[Step]:
        """The draft's k steps on a micro-batch."""
        steps: list[Step] = self.draft(batch["features"], batch["input_ids"], rows_mask(batch), self.ttt_steps)
        return steps

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target over all of V, in float32."""
        return Verifier(hidden, self.draft.lm_head.weight.detach())

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The norm before the head, and the verifier's frozen head."""
        return self.draft.norm, self.draft.lm_head.weight

    def total(self, losses: Tensor) -> Tensor:
        """What backward runs on, from the losses [k] of the steps."""
        return losses @ losses.new_tensor([0.8**step for step in range(len(losses))])

    def reported(self, losses: Tensor) -> Tensor:
        """What is logged and printed."""
        return self.total(losses.detach())
