"""The prototype's ``Model`` and ``EConfig``, backed by the native HASS draft.

The prototype's training script runs on them unchanged once its two imports of a model and a config point here. It calls
the model once per TTT step with the inputs of the steps before, runs backward after each, applies ``lm_head_layernorm``
itself and brings the verifier's head along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ports.hass.config import load_draft_config
from ports.hass.model import HassDraftModel
from ports.training.adapter import EConfig, PrototypeModel
from ports.training.attention import ttt_cache
from ports.training.verifier import check_weights_present

__all__ = ["EConfig", "Model"]


class Model(PrototypeModel[HassDraftModel]):
    """The draft behind the prototype's interface; all but the verifier's embedding trains."""

    @staticmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> HassDraftModel:
        """In the prototype's alignment."""
        draft = HassDraftModel(load_draft_config(configpath, basepath, ttt_steps))
        check_weights_present(basepath)
        draft.load_verifier_weights()
        return draft

    @staticmethod
    def named_parts(draft: HassDraftModel) -> dict[str, nn.Module]:
        """All but the verifier's head, under their own names."""
        return {name: module for name, module in draft.named_children() if name != "lm_head"}

    def forward(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        hidden_states_history: Sequence[Tensor] = (),
    ) -> Tensor:
        """One TTT step; the history runs through the layer again to fill the cache, its outputs are dropped.

        Args:
            hidden_states: [B, T, h], this step's input.
            input_ids: [B, T] int64, already shifted.
            attention_mask: [B, T], 1 on real positions. Default: no padding.
            hidden_states_history: the ``hidden_states`` [B, T, h] of the steps before, oldest first.

        Returns:
            [B, T, h] after the layer, before ``lm_head_layernorm``.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        fuse, cache = self.draft.fusion(self.draft.embed(input_ids)), ttt_cache()
        for hidden in hidden_states_history:
            self.draft.step(fuse, hidden, mask, cache)
        return self.draft.step(fuse, hidden_states, mask, cache)
