"""The prototype's ``Model`` and ``EConfig``, backed by the native HASS draft.

The prototype's training script runs on them unchanged once its two imports of a model and a config point here. It calls
the model once per TTT step with the inputs of the steps before, runs backward after each, applies ``lm_head_layernorm``
itself and brings the verifier's head along.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ports.errors import InputError
from ports.hass.draft_config import load_draft_config
from ports.hass.model import HassDraftModel
from ports.training.adapter import EConfig, PrototypeModel
from ports.training.attention import ttt_cache
from ports.training.verifier import check_weights_present

__all__ = ["EConfig", "Model"]


class Model(PrototypeModel[HassDraftModel]):
    """The draft behind the prototype's interface; all but the verifier's embedding trains."""

    def __init__(self, config: EConfig, load_emb: bool = True, path: str | None = None, ttt_steps: int = 3) -> None:
        """Build the draft of ``config`` for the verifier at ``path``.

        Args:
            config: the draft's config.
            load_emb: must be true: a draft without its verifier's embedding could not be served.
            path: verifier directory or hub id.
            ttt_steps: how many tokens a checkpoint from :meth:`save_native` proposes.

        Raises:
            InputError: see :func:`ports.hass.draft_config.load_draft_config`.
        """
        if path is None or not load_emb:
            raise InputError(config.configpath, "path, load_emb", (path, load_emb), "a verifier and its embedding")
        check_weights_present(path)
        draft = HassDraftModel(load_draft_config(config.configpath, path, ttt_steps))
        draft.load_verifier_weights()
        super().__init__(draft, path)
        self.embed_tokens, self.embed_layernorm = draft.embed_tokens, draft.embed_layernorm
        self.hidden_layernorm, self.lm_head_layernorm = draft.hidden_layernorm, draft.lm_head_layernorm
        self.fc, self.layers, self.rotary_emb = draft.fc, draft.layers, draft.rotary_emb

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
