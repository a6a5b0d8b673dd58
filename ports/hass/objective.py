"""The HASS objective: masked mean KL at every TTT step; gradients add up over the steps, the report is their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ports.training.data import Batch, rows_mask
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import Step, TTTObjective


class HassObjective(TTTObjective):
    """Of a ``HassDraftModel``.

    A step's input is detached, so one backward through the sum of the steps' losses adds up what a backward after each
    step would give.
    """

    def __init__(
        self,
        draft: Any,
        ttt_steps: int,
        topk: int = 10,
        implementation: LossImplementation = LossImplementation.FUSED,
        recompute: bool = False,
    ) -> None:
        super().__init__(draft, ttt_steps, draft.alignment, implementation, recompute)
        self.topk = topk

    def unroll(self, batch: Batch) -> list[Step]:
        """See :meth:`ports.hass.model.HassDraftModel.unroll`."""
        inputs = batch["features"], batch["input_ids"], rows_mask(batch)
        return self.draft.unroll(*inputs, self.ttt_steps, self.recompute, batch["loss_mask"])

    def verifier(self, hidden: Tensor) -> Verifier:
        """The target over all of V; its head runs in autocast like the draft's."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return Verifier(hidden, self.draft.lm_head.weight.detach(), dtype)

    def output(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The norm before the head, and the verifier's frozen head."""
        return self.draft.lm_head_layernorm, self.draft.lm_head.weight

    def reported(self, losses: Tensor) -> Tensor:
        """Their mean."""
        return losses.detach().mean()
