"""The Eagle3 objective: the plain sum over TTT steps of the masked mean KL divergence, one backward through all."""

from __future__ import annotations

import copy
from collections.abc import Callable

from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor

from ports.eagle3.model import unroll
from ports.training.alignment import Alignment
from ports.training.data import Batch, rows_mask
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import Step, TTTObjective


class Eagle3Objective(TTTObjective):
    """Nothing is detached between the steps.

    The verifier's head rows stay in float32 and outside the module's parameters: a cast of the module to bfloat16 must
    not touch the target distribution.
    """

    def __init__(
        self,
        draft: Eagle3DraftModel,
        ttt_steps: int,
        alignment: Alignment = Alignment.PROTOTYPE,
        implementation: LossImplementation = LossImplementation.FUSED,
        recompute: bool = False,
    ) -> None:
        super().__init__(draft, ttt_steps, alignment, implementation, recompute)
        self._outside = {"head": draft.verifier_lm_head.weight.detach()}

    def unroll(self, batch: Batch) -> list[Step]:
        """See :func:`ports.eagle3.model.unroll`."""
        inputs = batch["features"], batch["input_ids"], rows_mask(batch)
        return unroll(self.draft, *inputs, self.ttt_steps, self.recompute, batch["loss_mask"])

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target over the draft vocabulary, in float32."""
        if self._outside["head"].device != hidden.device:
            self._outside["head"] = self._outside["head"].to(hidden.device)
        return Verifier(hidden, self._outside["head"])

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The draft's final norm and its own, trained head."""
        return self.draft.norm, self.draft.lm_head.weight

    def reported(self, losses: Tensor) -> Tensor:
        """Their sum."""
        return losses.detach().sum()

    def after_cast(self) -> None:
        """Give the rotary embedding its float32 frequencies back after the module was cast (DeepSpeed does)."""
        rotary = self.draft.rotary_emb
        fresh = type(rotary)(copy.copy(rotary.config))
        rotary.inv_freq = fresh.inv_freq.to(rotary.inv_freq.device)
