"""The unrolled draft against two plain readings of it: loops over positions, and a served chain.

Shapes: B = 1 sample, T positions, h hidden size, H query heads, K key/value heads, e head dim.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

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


def heads(draft, states, projection):
    return F.linear(states, projection.weight).unflatten(-1, (-1, draft.layers[0].self_attn.head_dim)).transpose(1, 2)


def keys_and_values(draft, states):
    """Rotated keys and values [1, H, T, e], key/value heads repeated."""
    attention = draft.layers[0].self_attn
    keys, values = heads(draft, states, attention.k_proj), heads(draft, states, attention.v_proj)
    rotary = draft.rotary_emb(states, torch.arange(states.shape[1])[None])
    keys = apply_rotary_pos_emb(keys, keys, *rotary)[0]
    return keys.repeat_interleave(2, dim=1), values.repeat_interleave(2, dim=1)


def attend(draft, history, position):
    """Own-position attention of one row [h]: step-0 keys up to p - s, then one key of every later step, read at p."""
    step, attention = len(history) - 1, draft.layers[0].self_attn
    query = heads(draft, history[-1], attention.q_proj)
    query = apply_rotary_pos_emb(query, query, *draft.rotary_emb(query, torch.arange(query.shape[2])[None]))[0]
    projected = [keys_and_values(draft, states) for states in history]
    seen = [(0, column) for column in range(position - step + 1)]
    seen += [(i, position) for i in range(1, step + 1) if position - (step - i) >= 0]
    keys = torch.stack([projected[i][0][0, :, p] for i, p in seen], dim=1)
    values = torch.stack([projected[i][1][0, :, p] for i, p in seen], dim=1)
    scores = (keys @ query[0, :, position, :, None])[..., 0] * attention.head_dim**-0.5
    return (torch.softmax(scores, -1)[:, None] @ values).flatten()


def plain_step(draft, hiddens, ids):
    """One prototype step, given the inputs of all steps up to it."""
    layer = draft.layers[0]
    history = [fused(draft, hidden, ids) for hidden in hiddens]
    attended = torch.stack([attend(draft, history, position) for position in range(ids.shape[1])])[None]
    out = history[-1] + F.linear(attended, layer.self_attn.o_proj.weight)
    normed = rms(out, layer.post_attention_layernorm)
    gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    return out + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)


@torch.no_grad()
def test_prototype_alignment_is_the_loop_over_positions(lively_draft, batch_of):
    draft, batch = lively_draft(), batch_of(0)
    ids, hiddens = batch["input_ids"], [batch["features"]]
    for step in draft(batch["features"], ids, batch["attention_mask"], ttt_steps=4):
        assert torch.equal(step.hidden_in, hiddens[-1])
        torch.testing.assert_close(step.hidden, plain_step(draft, hiddens, ids), atol=CLOSE, rtol=CLOSE)
        logits = rms(step.hidden, draft.lm_head_layernorm) @ draft.lm_head.weight.T
        torch.testing.assert_close(step.logits, logits, atol=CLOSE, rtol=CLOSE)
        hiddens.append(torch.cat([step.hidden_in[:, :1], step.hidden[:, :-1]], dim=1))


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
