"""The unrolled draft against a plain reading of it, a served chain; what trains, and how it starts.

Shapes: one sample, T positions, h hidden size.
"""

from __future__ import annotations

import copy

import pytest
import torch

from ports.hass import train as hass

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
def test_chain_alignment_with_two_layers_is_what_a_served_draft_computes(lively_draft, batch_of, two_layers):
    draft = lively_draft(ttt_alignment="chain")
    assert len(draft.layers) == 2
    batch = batch_of(0, ttt_alignment="chain")
    steps = draft(batch["features"], batch["input_ids"], ttt_steps=4)
    for start in range(5):
        for number, out in enumerate(served(draft, batch["features"], batch["input_ids"], start, 4)):
            torch.testing.assert_close(steps[number].hidden[:, start + number], out, atol=CLOSE, rtol=CLOSE)


def test_a_step_is_detached_from_the_steps_before(lively_draft, batch_of):
    draft, batch = lively_draft(), batch_of(0)
    features = batch["features"].requires_grad_(True)
    steps = draft(features, batch["input_ids"], ttt_steps=3)
    assert not any(step.hidden_in.requires_grad for step in steps)
    sum(step.logits.sum() for step in steps).backward()
    assert features.grad is None


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_the_verifiers_weights_get_no_gradient(lively_draft, batch_of, name):
    draft, batch = lively_draft(), batch_of(0)
    draft(batch["features"], batch["input_ids"])[0].logits.sum().backward()
    assert draft.get_submodule(name).weight.grad is None
    assert draft.fc.weight.grad is not None


def test_a_fresh_draft_starts_like_plain_torch_layers(settings):
    draft = hass.build(settings())
    bound = draft.fc.in_features**-0.5
    assert draft.fc.weight.abs().max() <= bound
    assert draft.fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert (draft.layers[0].post_attention_layernorm.weight == 1).all()
