"""The Eagle3 objective: the plain sum over TTT steps of the masked mean KL divergence, one backward through all."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor

from ports.eagle3.model import unroll
from ports.training.alignment import Alignment
from ports.training.data import Batch, rows_mask
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import Step, TTTObjective
from ports.verifier.logits import VerifierHead


class Eagle3Objective(TTTObjective):
    """Nothing is detached between the steps.

    The verifier's head rows and what its class does after them stay in float32 and outside the module's parameters: a
    cast of the module to bfloat16 must not touch the target distribution.
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
        attached = draft.config.speculators_config  # none where no number counts
        self._name = "" if attached is None else attached.verifier.name_or_path
        head = None if attached is None else VerifierHead.load(self._name, draft.t2d)
        self._outside: dict[str, Tensor | VerifierHead] = {
            "head": draft.verifier_lm_head.weight.detach() if head is None or head.is_linear else head
        }

    def unroll(self, batch: Batch) -> list[Step]:
        """See :func:`ports.eagle3.model.unroll`."""
        inputs = batch["features"], batch["input_ids"], rows_mask(batch)
        return unroll(self.draft, *inputs, self.ttt_steps, self.recompute, batch["loss_mask"])

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target over the draft vocabulary, in float32."""
        return Verifier(hidden, self._beside("head", hidden))

    def target_tokens(self, hidden: Tensor) -> Tensor:
        """Of the whole vocabulary: a token outside the draft's is a rejection, whatever the draft says."""
        if self.draft.t2d is None:
            return super().target_tokens(hidden)
        if "whole head" not in self._outside:
            self._outside["whole head"] = VerifierHead.load(self._name)
        tokens = Verifier(hidden, self._beside("whole head", hidden)).logits.argmax(-1)
        said = self.draft.t2d.to(hidden.device).bool()
        return torch.where(said[tokens], said.cumsum(0)[tokens] - 1, -1)

    def _beside(self, name: str, hidden: Tensor) -> Tensor | VerifierHead:
        """A head of the verifier, moved once to where the hidden states are."""
        if self._outside[name].device != hidden.device:
            self._outside[name] = self._outside[name].to(hidden.device)
        return self._outside[name]

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
