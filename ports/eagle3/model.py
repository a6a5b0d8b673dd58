"""Speculators' Eagle3 draft, unrolled for training-time test.

Shapes: B batch, T positions, h hidden size, H query heads, K key/value heads, e head dim, D draft vocabulary, k TTT
steps.
"""

from __future__ import annotations

from typing import Any

import torch
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.models.eagle3.model_definitions import model_classes
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation, attention_name, ttt_cache
from ports.training.draft_config import DRAFT_LAYERS
from ports.training.masks import documents_of
from ports.training.objective import Step, in_this_precision, next_hidden
from ports.training.shared_compute import Layer, OpenLayer, SharedHalf, TrainedRows, can_split, run_layers
from ports.training.vocabulary import VocabularyMap


def build_draft(
    config: Eagle3SpeculatorConfig,
    vocabulary: VocabularyMap,
    alignment: Alignment,
    implementation: AttentionImplementation = AttentionImplementation.AUTO,
) -> Eagle3DraftModel:
    """Speculators' own model with its verifier attached, the TTT attention selected and ``lm_head`` trainable.

    Speculators loads embedding, head rows and final norm from the verifier and freezes them; the prototype trains the
    head, so it is thawed again. The embedding never gets a gradient in either: it stays frozen even where the config
    asks for ``embed_requires_grad``, so that no optimizer lets it decay.
    """
    config.transformer_layer_config._attn_implementation = attention_name(alignment, implementation)
    draft = Eagle3DraftModel(config)
    for module in (draft.fc, *draft.layers.modules()):  # from torch's own distribution, as the prototype starts them
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    draft.load_vocab_mappings(vocabulary.t2d, vocabulary.d2t)
    draft.load_verifier_weights()
    return thaw_head(draft)


def thaw_head(draft: Eagle3DraftModel) -> Eagle3DraftModel:
    """Let train what the prototype trains: the head too, and never the embedding."""
    draft.lm_head.weight.requires_grad_(True)
    draft.embed_tokens.weight.requires_grad_(False)
    return draft


def unroll(
    draft: Eagle3DraftModel,
    features: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    ttt_steps: int,
    recompute: bool = False,
    loss_mask: Tensor | None = None,
) -> list[Step]:
    """Run the draft on its own outputs ``ttt_steps`` times; nothing is detached.

    Every step reads the same ids; its hidden state moves one position to the right, the first position stays. Keys and
    values of earlier steps come from the cache, projected once, as is what the embeddings give to all of them.

    Args:
        features: [B, T, 3h], the verifier's auxiliary hidden states.
        input_ids: [B, T], already shifted.
        attention_mask: [B, T], 1 on real positions; or one packed row of :mod:`ports.training.attention`.
        recompute: keep no activations of the layers.
        loss_mask: [B, T], not 0 on the rows in the loss: only there does the last step have a gradient, see
            :mod:`ports.training.shared_compute`. Default: everywhere.
    """
    embeds, documents, cache = embed(draft, input_ids), documents_of(attention_mask), ttt_cache()
    rotary = draft.rotary_emb(embeds, documents.positions)
    hidden = draft.fc(features.to(draft.fc.weight.dtype))
    head = in_this_precision(lambda out: draft.lm_head(draft.norm(out)), features.device.type)
    context = {"attention_mask": attention_mask, "position_embeddings": rotary}
    layers, steps = [bind_embeddings(draft.layers[0], embeds), *draft.layers[1:]], []
    trained = None if loss_mask is None else TrainedRows(loss_mask)
    for step in range(ttt_steps):
        rows = trained if step == ttt_steps - 1 else None
        out = run_layers(layers, hidden, cache, recompute, rows, **context)
        steps.append(Step(hidden, out, head))
        hidden = next_hidden(hidden, out, documents.first)
    return steps


def embed(draft: Eagle3DraftModel, input_ids: Tensor) -> Tensor:
    """Token embeddings [B, T, h], without gradient."""
    with torch.no_grad():
        return draft.embed_tokens(input_ids)


def bind_embeddings(layer: nn.Module, embeds: Tensor) -> Layer:
    """``layer`` bound to the embeddings [B, T, h] of one unroll."""
    if can_share(layer):
        return SharedFirstLayer(layer, embeds)
    return lambda hidden, **context: layer(torch.cat([embeds.to(hidden.dtype), hidden], dim=-1), **context)


def can_share(layer: Any) -> bool:
    """Is this one of Speculators' layers as it comes? Another may do more between projection and attention."""
    known = type(layer) in [model_classes[kind].first_layer_class for kind in DRAFT_LAYERS["eagle3"]]
    return known and can_split(layer, _projections(layer))


def _projections(layer: Any) -> list[nn.Linear]:
    return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]


class SharedFirstLayer(OpenLayer):
    """The first layer through its own modules, but for query, key and value of every TTT step s.

    It projects [norm(embeds), norm(hidden_s)]; what the embeddings [B, T, h] give to that is made once.
    """

    def __init__(self, layer: Any, embeds: Tensor) -> None:
        super().__init__(layer)
        projections, self.attention = _projections(layer), layer.self_attn
        weights: list[Tensor] = [projection.weight for projection in projections]
        biases: list[Tensor] = [projection.bias for projection in projections if projection.bias is not None]
        self.heads = [projection.out_features // self.attention.head_dim for projection in projections]
        bias = torch.cat(biases) if biases else None
        self.project = SharedHalf(layer.input_layernorm(embeds), torch.cat(weights), bias)

    def attend(
        self, hidden: Tensor, attention_mask: Tensor, past_key_values: Cache, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The residual plus the attention, [B, T, h]."""
        normed = self.layer.hidden_norm(hidden)
        states = self.project(normed).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)
        query, key, value = states.split(self.heads, dim=1)
        query, key = self._normed("q_norm", query), self._normed("k_norm", key)
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        keys, values = past_key_values.update(key, value, self.attention.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS[self.attention.config._attn_implementation]
        switches = {
            "scaling": self.attention.scaling,
            "dropout": self.attention.attention_dropout if self.attention.training else 0.0,
        }
        out, _ = attention(self.attention, query, keys, values, attention_mask, **switches)
        return (normed if self.layer.norm_before_residual else hidden) + self.attention.o_proj(out.flatten(2))

    def _normed(self, name: str, states: Tensor) -> Tensor:
        """Heads [B, H, T, e] after the layer's norm over e, where it has one (Qwen 3's)."""
        norm = getattr(self.attention, name, None)
        return states if norm is None else norm(states)
