"""The draft's first layer over the TTT steps, with what the embeddings give to query, key and value made once.

Shapes: B batch, T positions, h hidden size, H query heads, K key/value heads, e head dim.

The layer projects [norm(embeds), norm(hidden_s)], and the embeddings are the same at every step s; see
:mod:`ports.training.attention.shared_half`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from speculators.models.eagle3.model_definitions import model_classes
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from ports.training.attention.shared_half import SharedHalf, can_split
from ports.training.attention.trained_rows import TrainedRows, feed, through_rows
from ports.training.draft_config import DRAFT_LAYERS

FirstLayer = Callable[..., Tensor]
"""``layer(hidden, attention_mask=, past_key_values=, position_embeddings=, rows=)``, [B, T, h] to [B, T, h]."""


def first_layer(layer: nn.Module, embeds: Tensor) -> FirstLayer:
    """``layer`` bound to the embeddings [B, T, h] of one unroll."""
    if can_share(layer):
        return SharedFirstLayer(layer, embeds)
    return lambda hidden, rows=None, **context: layer(torch.cat([embeds.to(hidden.dtype), hidden], dim=-1), **context)


def can_share(layer: Any) -> bool:
    """Is this one of Speculators' layers as it comes? Another may do more between projection and attention."""
    known = type(layer) in [model_classes[kind].first_layer_class for kind in DRAFT_LAYERS["eagle3"]]
    return known and can_split(layer, _projections(layer))


def _projections(layer: Any) -> list[nn.Linear]:
    return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]


class SharedFirstLayer:
    """One unroll through the layer's own modules, but for query, key and value."""

    def __init__(self, layer: Any, embeds: Tensor) -> None:
        self.layer, self.attention = layer, layer.self_attn
        projections = _projections(layer)
        biases: list[Tensor] = [projection.bias for projection in projections if projection.bias is not None]
        weights: list[Tensor] = [projection.weight for projection in projections]
        self.heads = [projection.out_features // self.attention.head_dim for projection in projections]
        bias = torch.cat(biases) if biases else None
        self.project = SharedHalf(layer.input_layernorm(embeds), torch.cat(weights), bias)

    def __call__(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        past_key_values: Cache,
        position_embeddings: tuple[Tensor, Tensor],
        rows: TrainedRows | None = None,
    ) -> Tensor:
        normed = self.layer.hidden_norm(hidden)
        residual = normed if self.layer.norm_before_residual else hidden
        out = residual + self._attend(normed, attention_mask, past_key_values, position_embeddings)
        return through_rows(rows, lambda states: feed(self.layer, states), out)

    def _attend(self, normed: Tensor, mask: Tensor, cache: Cache, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """[B, T, h], after the output projection."""
        states = self.project(normed).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)
        query, key, value = states.split(self.heads, dim=1)
        query, key = self._normed("q_norm", query), self._normed("k_norm", key)
        query, key = modeling_llama.apply_rotary_pos_emb(query, key, *rotary)
        keys, values = cache.update(key, value, self.attention.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.attention.config._attn_implementation]
        dropout = self.attention.attention_dropout if self.attention.training else 0.0
        out, _ = attend(self.attention, query, keys, values, mask, dropout=dropout, scaling=self.attention.scaling)
        projected: Tensor = self.attention.o_proj(out.flatten(2))
        return projected

    def _normed(self, name: str, states: Tensor) -> Tensor:
        """Heads [B, H, T, e] after the layer's norm over e, where it has one (Qwen 3's)."""
        norm = getattr(self.attention, name, None)
        return states if norm is None else norm(states)
