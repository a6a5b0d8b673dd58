"""The prototype's ``Model`` and ``EConfig``, backed by Speculators' Eagle3 draft.

The prototype's training script runs on them unchanged once its two imports of a model and a config point here: it calls
``model(hidden_states, input_ids, attention_mask, history)`` at every TTT step and applies ``lm_head_layernorm`` and
``lm_head`` itself. Parameters go by the prototype's names, so its checkpoints hold what they always held.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ports.eagle3.config import load_draft_config
from ports.eagle3.model import build_draft, embed
from ports.errors import InputError
from ports.training.adapter import EConfig, PrototypeModel
from ports.training.alignment import Alignment
from ports.training.attention import ttt_cache
from ports.training.verifier import check_weights_present
from ports.training.vocabulary import load_vocabulary_map

__all__ = ["EConfig", "Model"]


class Model(PrototypeModel[Eagle3DraftModel]):
    """The draft behind the prototype's interface: its submodules under the prototype's names.

    The embedding is the verifier's and frozen; everything else trains. ``t2d.npy`` and ``d2t.npy`` are read from the
    working directory, as the prototype does.
    """

    @staticmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> Eagle3DraftModel:
        """Raises InputError for another layer than the prototype's, too."""
        config = load_draft_config(configpath, basepath, ttt_steps)
        layer = config.transformer_layer_config
        if layer.model_type != "llama":
            raise InputError(configpath, "model_type", layer.model_type, "llama, the prototype's")
        sizes = layer.vocab_size, config.draft_vocab_size
        vocabulary = load_vocabulary_map(Path("t2d.npy"), Path("d2t.npy"), *sizes)
        check_weights_present(basepath)
        return build_draft(config, vocabulary, Alignment.PROTOTYPE)

    @staticmethod
    def named_parts(draft: Eagle3DraftModel) -> dict[str, nn.Module]:
        """The norms that Speculators keeps in the layer and at the end stand beside it."""
        first = draft.layers[0]
        for entry in (draft.fc, draft.lm_head):
            entry.register_forward_pre_hook(_cast_to_weight)
        layer = {name: getattr(first, name) for name in ("self_attn", "mlp", "post_attention_layernorm")}
        return {
            **{name: getattr(draft, name) for name in ("embed_tokens", "lm_head")},
            **{name: getattr(first, name) for name in ("hidden_norm", "input_layernorm")},
            "lm_head_layernorm": draft.norm,
            "layers": nn.ModuleList([nn.ModuleDict(layer)]),
            "fc": draft.fc,
        }

    def forward(
        self,
        hidden_states: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        hidden_states_history: Sequence[Tensor] = (),
    ) -> Tensor:
        """One TTT step.

        Args:
            hidden_states: [B, T, h], or the features [B, T, 3h], which go through ``fc`` first.
            input_ids: [B, T] int64, already shifted.
            attention_mask: [B, T], 1 on real positions.
            hidden_states_history: the ``hidden_states`` [B, T, h] of the steps before, oldest first.

        Returns:
            [B, T, h] after the layer, before ``lm_head_layernorm``.
        """
        embeds = embed(self.draft, input_ids)
        if hidden_states.shape[-1] != embeds.shape[-1]:
            hidden_states = self.draft.fc(hidden_states)
        embeds = embeds.to(hidden_states.dtype)
        rotary = self.draft.rotary_emb(embeds, torch.arange(input_ids.shape[1], device=input_ids.device)[None])
        out: Tensor = self.draft.layers[0](
            torch.cat([embeds, hidden_states], dim=-1),
            attention_mask=attention_mask,
            past_key_values=self._project_again(hidden_states_history, embeds, rotary),
            position_embeddings=rotary,
        )
        return out

    def _project_again(self, history: Sequence[Tensor], embeds: Tensor, rotary: tuple[Tensor, Tensor]) -> Cache:
        """A cache with the history's keys and values under the current weights, with gradient."""
        first, cache = self.draft.layers[0], ttt_cache()
        attention, normed = first.self_attn, first.input_layernorm(embeds)
        for hidden in history:
            states = torch.cat([normed, first.hidden_norm(hidden)], dim=-1)
            keys, values = (_split_heads(part(states), attention) for part in (attention.k_proj, attention.v_proj))
            _, keys = apply_rotary_pos_emb(keys, keys, *rotary)
            cache.update(keys, values, layer_idx=0)
        return cache


def _split_heads(states: Tensor, attention: nn.Module) -> Tensor:
    """[B, T, K * e] -> [B, K, T, e]."""
    head_dim: Any = attention.head_dim
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _cast_to_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The script hands ``fc`` bfloat16 whatever the weights are, and calls it outside of autocast."""
    weight: Any = module.weight
    return tuple(value.to(weight.dtype) for value in inputs)
