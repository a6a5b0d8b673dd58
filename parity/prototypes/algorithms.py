"""What the harness has to know of an algorithm to run its port."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import ports.eagle3.model
import ports.eagle3.train
import ports.hass.train
from ports.eagle3.settings import Eagle3Settings
from ports.hass.settings import HassSettings
from ports.training.settings import TrainingSettings


@dataclass(frozen=True)
class Algorithm:
    """``train`` offers ``build``, ``build_dataset`` and ``start``; checkpoints are ``cpdir/<checkpoint><pass>``.

    ``owns_vocabulary``: the draft has its own vocabulary map, and its checkpoint holds the verifier's embedding.
    """

    name: str
    train: ModuleType
    settings: type[TrainingSettings]
    checkpoint: str
    adapter: str
    owns_vocabulary: bool

    @torch.no_grad()
    def logits(self, draft: Any, batch: dict[str, Tensor], ttt_steps: int) -> Tensor:
        """The draft's logits of the last TTT step."""
        inputs = batch["hidden_states"], batch["input_ids"], batch["attention_mask"], ttt_steps
        steps = ports.eagle3.model.unroll(draft, *inputs) if self.owns_vocabulary else draft(*inputs)
        return steps[-1].logits


ALGORITHMS = {
    "eagle3": Algorithm("eagle3", ports.eagle3.train, Eagle3Settings, "model", "ports.eagle3.adapter", True),
    "hass": Algorithm("hass", ports.hass.train, HassSettings, "state_", "ports.hass.adapter", False),
}
