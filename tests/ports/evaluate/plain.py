"""Greedy drafting without any cache, written for reading: every token is the end of one pass over everything.

The passes are those of training: TTT attention with a single step is causal attention.
"""

import torch

from parity.fixtures.features import hidden_states
from ports.evaluate.acceptance import Counters
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation, attention_name, ttt_cache


@torch.no_grad()
def propose(draft, states, text, size):
    """The ``size`` tokens that the draft expects after ``text`` [T + 1], whose last token has no ``states`` [T, h]."""
    draft.config.transformer_layer_config._attn_implementation = attention_name(
        Alignment.CHAIN, AttentionImplementation.EAGER
    )
    run, head, hidden = (_eagle3 if draft.config.speculators_model_type == "eagle3" else _hass)(draft, states)
    tokens = list(text[1:])
    for _ in range(size):
        out = run(torch.tensor([tokens]), hidden)
        tokens.append(head(out[0, -1]))
        hidden = torch.cat([hidden, out[:, -1:]], dim=1)
    return tokens[-size:]


def _eagle3(draft, states):
    def run(ids, hidden):
        out = torch.cat([draft.embed_tokens(ids), hidden], dim=-1)
        rotary, cache = draft.rotary_emb(out, torch.arange(ids.shape[1])[None]), ttt_cache()
        for layer in draft.layers:
            out = layer(out, attention_mask=torch.ones_like(ids), past_key_values=cache, position_embeddings=rotary)
        return out

    def head(out):
        best = int(draft.lm_head(draft.norm(out)).argmax())
        return best if draft.d2t is None else best + int(draft.d2t[best])

    features = torch.cat([states[i] for i in draft.config.eagle_aux_hidden_state_layer_ids], dim=-1)
    return run, head, draft.fc(features)[None]


def _hass(draft, states):
    def run(ids, hidden):
        return draft.step(draft.fusion(draft.embed(ids)), hidden, torch.ones_like(ids), ttt_cache())

    return run, lambda out: int(draft.lm_head(draft.lm_head_layernorm(out)).argmax()), states[-1][None]


KNOWN = {}
"""What follows a text, by the weights of a model and the text: many tests ask for the same."""


@torch.no_grad()
def continue_greedily(model, ids, length):
    """The ``length`` tokens that are likeliest after ``ids``, one by one; no token ends the text."""
    weights = tuple(float(each.double().sum()) for each in model.parameters())
    known = KNOWN.setdefault((type(model), weights, tuple(ids)), [])
    while len(known) < length:
        text = torch.tensor([[*ids, *known]])
        known.append(int(model(input_ids=text, use_cache=False).logits[0, -1].argmax()))
    return known[:length]


def simulate(draft, verifier, prompts, length, size):
    """Of ``length`` tokens after each prompt, the proposals of ``size`` that agree with the verifier's own tokens.

    The verifier gives the first token alone, and one of its own after every proposal; the last may reach past the end.
    """
    accepted = []
    for prompt in prompts:
        greedy, done = continue_greedily(verifier, prompt, length + size), 1
        states = hidden_states(verifier, [*prompt, *greedy])
        while done < length:
            text = [*prompt, *greedy[:done]]
            proposal = propose(draft, [state[: len(text) - 1] for state in states], text, size)
            accepted.append(agreeing(proposal, greedy[done : done + size]))
            done += accepted[-1] + 1
    return Counters.of(accepted, size)


def agreeing(proposal, greedy):
    """How many tokens of a proposal come before the first wrong one."""
    wrong = [place for place, (ours, theirs) in enumerate(zip(proposal, greedy, strict=True)) if ours != theirs]
    return wrong[0] if wrong else len(proposal)
