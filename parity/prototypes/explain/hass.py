"""HASS' ``main_hass`` as the prototype's formulas with causes put in.

Shapes: B batch, N heads, T positions, e head dim, h hidden size, V the verifier's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parity.prototypes.explain.study import Cause
from parity.prototypes.reference.attention import ttt_scores, ttt_values
from parity.prototypes.reference.drafts import HassLayer, log_softmax, masked_mean
from parity.prototypes.reference.layer import Entry, Tap, linear, no_tap, rms_norm
from parity.prototypes.reference.loop import Setup

CAUSES = (
    Cause("embed-norm", "no norm on the token's embedding"),
    Cause("hidden-norm", "no norm on the hidden state before `fc`"),
    Cause("head-norm", "no norm before the verifier's head"),
    Cause("fc-bias", "`fc` has a bias; it starts as zeros here"),
    Cause("chain-keys", "keys and values of earlier steps are read where the chain has them (`own-position-kv`)"),
    Cause(
        "unmasked-softmax",
        "positions after the row, padding too, are scored 0 instead of minus infinity: they take their share of the "
        "softmax, and are left out of the sum only after it",
    ),
    Cause("rope", "the draft config's rotary scaling is refused; base and head size are kept"),
    Cause("cross-entropy", "the loss of a row is the cross-entropy; the verifier's entropy is not taken off"),
    Cause("p_w", "the cross-entropy is weighed with `p_w`"),
    Cause("smooth-l1", "smooth L1 between the hidden state and the verifier's is added, weighed with `v_w`"),
    Cause("topk", "the cross-entropy over the likeliest `--topk` tokens is added, weighed with `topk_w`"),
)


class OtherLayer(HassLayer):
    """The prototype's layer with causes in."""

    causes: frozenset[str] = frozenset()

    def enter(self, hidden: Tensor, step: int, tap: Tap) -> Entry:
        embeds = self._normed(self.raw_embeds, "embed", step)
        fused = linear(torch.cat([embeds, self._normed(hidden, "hidden", step)], dim=-1), self.weights, "fc")
        return Entry(fused, fused, fused)

    def _normed(self, x: Tensor, which: str, step: int) -> Tensor:
        return x if f"{which}-norm" in self.causes else self._norm(x, f"{which}_layernorm", step, no_tap)

    def attend(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        if "unmasked-softmax" not in self.causes:
            return super().attend(query, keys, values)
        before = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
        weights = torch.softmax(ttt_scores(query, keys, self.own_position) * before, dim=-1) * before
        return ttt_values(weights, values, self.own_position)


def hass(
    setup: Setup, batch: Mapping[str, Tensor], facts: Mapping[str, Any], causes: frozenset[str]
) -> dict[str, Tensor]:
    """Tensors of the first batch with the given causes in."""
    weights = setup.weights()
    if "fc-bias" in causes:
        weights["fc.bias"] = torch.zeros(weights["fc.weight"].shape[0], requires_grad=True)
    real, target_p = batch["attention_mask"].bool(), torch.softmax(batch["target"] @ setup.head.T, dim=-1)
    tensors: dict[str, Tensor] = {}
    losses = []
    for step, (hidden, logits) in enumerate(unroll(setup, weights, batch, facts, causes)):
        loss = step_loss(hidden, logits, target_p, batch, facts, setup.case.topk, causes)
        loss.backward()
        losses.append(loss.detach())
        tensors |= {f"step{step}.hidden": hidden.detach()[real], f"step{step}.logits": logits.detach()[real]}
        tensors[f"step{step}.loss"] = losses[-1].reshape(1)
    grads = {f"grad.{name}": value.grad for name, value in weights.items() if value.grad is not None}
    return {**tensors, "loss": torch.stack(losses).mean().reshape(1), **grads}


def unroll(
    setup: Setup,
    weights: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    causes: frozenset[str],
) -> list[tuple[Tensor, Tensor]]:
    """Hidden states [B, T, h] and logits [B, T, V] of every step; a step's input is detached."""
    config = {**setup.config, **({"rope_theta": facts["rope_base"], "rope_scaling": None} if "rope" in causes else {})}
    embeds = weights["embed_tokens.weight"][batch["input_ids"]].detach()
    layer = OtherLayer(weights, config, embeds, batch["attention_mask"], "chain-keys" not in causes, no_tap, False)
    layer.causes = causes
    hidden, steps = batch["hidden_states"], []
    for _ in range(setup.case.ttt_steps):
        out = layer(hidden)
        norm = weights["lm_head_layernorm.weight"]
        steps.append(
            (out, (out if "head-norm" in causes else rms_norm(out, norm, config["rms_norm_eps"])) @ setup.head.T)
        )
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1).detach()
    return steps


def step_loss(
    hidden: Tensor,
    logits: Tensor,
    target_p: Tensor,
    batch: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    topk: int,
    causes: frozenset[str],
) -> Tensor:
    """The loss of one step, a sum of the terms that are in."""
    mask, config = batch["loss_mask"], facts["train_config"]
    terms = -target_p * log_softmax(logits)
    entropy = 0.0 if "cross-entropy" in causes else torch.special.xlogy(target_p, target_p)
    loss = (config["p_w"] if "p_w" in causes else 1.0) * masked_mean((entropy + terms).sum(-1), mask)
    if "smooth-l1" in causes:
        distance = torch.nn.functional.smooth_l1_loss(hidden, batch["target"], reduction="none").mean(-1)
        loss = loss + config["v_w"] * masked_mean(distance, mask)
    if "topk" in causes:
        likeliest = terms.gather(-1, target_p.topk(topk, dim=-1).indices).sum(-1)
        loss = loss + config["topk_w"] * masked_mean(likeliest, mask)
    return loss


def aligned(theirs: Mapping[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """HASS' trace at the real positions; the terms of its loss are left to the total."""
    kept = {name: value for name, value in theirs.items() if not name.endswith(("entropy", "smooth_l1", "topk"))}
    return {
        name: value[real.bool()] if name.endswith((".hidden", ".logits")) else value for name, value in kept.items()
    }
