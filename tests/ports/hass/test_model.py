"""The unrolled draft against a plain reading of it, a served chain.

Shapes: one sample, T positions, h hidden size.
"""

from __future__ import annotations

import copy
import json

import torch

CLOSE = 2e-5
"""Hidden states of size 5 after up to three steps in float32; measured at most 4.3e-6."""


def fused(draft, hidden, ids):
    """fc([norm(embedding) ; norm(hidden)]) [1, T, h], from the weights alone."""
    embeds = rms(draft.embed_tokens.weight[ids], draft.embed_layernorm)
    both = torch.cat([embeds, rms(hidden, draft.hidden_layernorm)], dim=-1)
    return both @ draft.fc.weight.T


def rms(values, norm):
    return norm.weight * values * torch.rsqrt(values.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def served(draft, features, ids, start, steps):
    """What a plain causal transformer gives at positions start, start + 1, .. when it is fed its own outputs."""
    plain = copy.deepcopy(draft)
    plain.config.transformer_layer_config._attn_implementation = "sdpa"
    for layer in plain.layers:
        layer.self_attn.config = plain.config.transformer_layer_config
    hidden = features[:, : start + 1]
    for step in range(steps):
        out = fused(plain, hidden, ids[:, : start + 1 + step])
        rotary = plain.rotary_emb(out, torch.arange(out.shape[1])[None])
        for layer in plain.layers:
            out = layer(out, position_embeddings=rotary)
        yield out[:, -1]
        hidden = torch.cat([hidden, out[:, -1:]], dim=1)


@torch.no_grad()
def test_chain_alignment_with_two_layers_is_what_a_served_draft_computes(lively_draft, batch_of, fixture):
    file = fixture / "draft_hass.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
    draft = lively_draft(ttt_alignment="chain")
    assert len(draft.layers) == 2
    batch = batch_of(0, ttt_alignment="chain")
    steps = draft(batch["features"], batch["input_ids"], ttt_steps=4)
    for start in range(5):
        for number, out in enumerate(served(draft, batch["features"], batch["input_ids"], start, 4)):
            torch.testing.assert_close(steps[number].hidden[:, start + number], out, atol=CLOSE, rtol=CLOSE)
