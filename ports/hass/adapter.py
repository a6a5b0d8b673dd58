"""The prototype's ``Model`` and ``EConfig``, backed by the native HASS draft.

The prototype's training script runs on them unchanged once its two imports of a model and a config point here. It calls
the model once per TTT step with the inputs of the steps before, runs backward after each, applies ``lm_head_layernorm``
itself and brings the verifier's head along.
"""

from __future__ import annotations

from torch import Tensor, nn

from ports.hass.config import load_draft_config
from ports.hass.model import HassDraftModel
from ports.training.adapter import EConfig, OneStep, PrototypeModel

__all__ = ["EConfig", "Model"]


class Model(PrototypeModel[HassDraftModel]):
    """The draft behind the prototype's interface; all but the verifier's embedding trains."""

    @staticmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> HassDraftModel:
        draft = HassDraftModel(load_draft_config(configpath, basepath, ttt_steps))
        draft.load_verifier_weights()
        return draft

    @staticmethod
    def named_parts(draft: HassDraftModel) -> dict[str, nn.Module]:
        """All but the verifier's head, under their own names."""
        return {name: module for name, module in draft.named_children() if name != "lm_head"}

    def bind(self, input_ids: Tensor, attention_mask: Tensor) -> OneStep:
        fuse = self.draft.fusion(self.draft.embed(input_ids))
        return lambda hidden, cache: self.draft.step(fuse, hidden, attention_mask, cache)
