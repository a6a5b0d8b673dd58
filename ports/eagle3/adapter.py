"""The prototype's ``Model`` and ``EConfig``, backed by Speculators' Eagle3 draft.

The prototype's training script runs on them unchanged once its two imports of a model and a config point here: it calls
``model(hidden_states, input_ids, attention_mask, history)`` at every TTT step and applies ``lm_head_layernorm`` and
``lm_head`` itself. Parameters go by the prototype's names, so its checkpoints hold what they always held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ports.eagle3.config import load_draft_config
from ports.eagle3.model import build_draft, embed
from ports.training.adapter import EConfig, OneStep, PrototypeModel
from ports.training.alignment import Alignment
from ports.training.vocabulary import load_vocabulary_map

__all__ = ["EConfig", "Model"]


class Model(PrototypeModel[Eagle3DraftModel]):
    """The draft behind the prototype's interface: its submodules under the prototype's names.

    The embedding is the verifier's and frozen; everything else trains. ``t2d.npy`` and ``d2t.npy`` are read from the
    working directory, as the prototype does.
    """

    @staticmethod
    def build(configpath: str, basepath: str, ttt_steps: int) -> Eagle3DraftModel:
        config = load_draft_config(configpath, basepath, ttt_steps)
        sizes = config.transformer_layer_config.vocab_size, config.draft_vocab_size
        vocabulary = load_vocabulary_map(Path("t2d.npy"), Path("d2t.npy"), *sizes)
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

    def bind(self, input_ids: Tensor, attention_mask: Tensor) -> OneStep:
        embeds, positions = embed(self.draft, input_ids), torch.arange(input_ids.shape[1], device=input_ids.device)

        def step(hidden: Tensor, cache: Cache) -> Tensor:
            hidden = hidden if hidden.shape[-1] == embeds.shape[-1] else self.draft.fc(hidden)
            both = torch.cat([embeds.to(hidden.dtype), hidden], dim=-1)
            rotary = self.draft.rotary_emb(both, positions[None])
            context = {"attention_mask": attention_mask, "position_embeddings": rotary}
            return self.draft.layers[0](both, past_key_values=cache, **context)

        return step


def _cast_to_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The script hands ``fc`` bfloat16 whatever the weights are, and calls it outside of autocast."""
    weight: Any = module.weight
    return tuple(value.to(weight.dtype) for value in inputs)
