"""A stand-in for HASS' model, made of the project's own formulas, with HASS' parameter names and call."""

import torch
from torch import nn

from parity.prototypes.explain.hass import CAUSES, OtherLayer
from parity.prototypes.reference.layer import no_tap


class Rotary(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base


class Model(nn.Module):
    def __init__(self, config, load_emb, path):
        super().__init__()
        width, kv = config.hidden_size, config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        self.config = vars(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, width).requires_grad_(False)
        self.fc = nn.Linear(2 * width, width)
        layer = nn.Module()
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()
        layer.self_attn.rotary_emb = Rotary(config.rope_theta)
        for name, size in {"q": width, "k": kv, "v": kv, "o": width}.items():
            setattr(layer.self_attn, f"{name}_proj", nn.Linear(width, size, bias=False))
        for name, sizes in {"gate": (width, config.intermediate_size), "up": (width, config.intermediate_size)}.items():
            setattr(layer.mlp, f"{name}_proj", nn.Linear(*sizes, bias=False))
        layer.mlp.down_proj = nn.Linear(config.intermediate_size, width, bias=False)
        layer.post_attention_layernorm = nn.Module()
        layer.post_attention_layernorm.weight = nn.Parameter(torch.ones(width))
        self.layers = nn.ModuleList([layer])

    def forward(self, hidden_states, input_ids, attention_mask, q_hidden_states=None):
        weights = dict(self.named_parameters())
        embeds = weights["embed_tokens.weight"][input_ids]
        layer = OtherLayer(weights, self.config, embeds, attention_mask, False, no_tap, False)
        layer.causes = frozenset(cause.id for cause in CAUSES)
        for hidden in [hidden_states, *([] if q_hidden_states is None else q_hidden_states)]:
            out = layer(hidden)
        return out
