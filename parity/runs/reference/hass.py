"""HASS: the draft model unrolled over TTT steps, and its objective.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parity.runs.reference.attention import ttt_attention
from parity.runs.reference.parts import (
    Tap,
    Weights,
    head_dim,
    heads,
    linear,
    mlp,
    no_tap,
    rms_norm,
    rotary_angles,
    rotate,
)
from parity.runs.reference.steps import Step, Unrolled, kl_loss, log_softmax, masked_mean

LAYER = "layers.0"


def forward(
    weights: Weights,
    config: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    head: Tensor,
    k: int,
    topk: int,
    own_position: bool = True,
    tap: Tap = no_tap,
    project_once: bool = False,
) -> Unrolled:
    """Unroll ``k`` steps and score them; every step has a backward of its own, the report is their mean.

    Args:
        weights: draft parameters by name; their dtype is the dtype of the computation.
        config: the draft config as the prototype reads it.
        batch: ``input_ids``, ``hidden_states`` and ``target`` [B, T, h], ``attention_mask``, ``loss_mask``.
        head: the verifier's output head [V, h].
        topk: how many of the verifier's likeliest tokens the logged top-k loss covers.
        own_position: read earlier steps' keys at the query's position (the prototype) or in the chain.
        tap: sees the modules' inputs and outputs.
        project_once: keep the fused states of earlier steps instead of fusing them again; the numbers are the same, but
            then all steps share one graph.
    """
    head = head.to(weights["fc.weight"].dtype)
    target_p = _target_distribution(batch["target"].to(head.dtype), head)
    hidden = batch["hidden_states"].to(head.dtype)
    embeds = weights["embed_tokens.weight"][batch["input_ids"]].detach()
    layer = Layer(weights, config, embeds, batch["attention_mask"], own_position, tap, project_once)
    steps = []
    for s in range(k):
        out = layer(hidden)
        normed = rms_norm(out, weights["lm_head_layernorm.weight"], config["rms_norm_eps"])
        tap("lm_head_layernorm", s, out, normed)
        logits = normed @ head.T
        steps.append(Step(hidden, out, logits, kl_loss(logits, target_p, batch["loss_mask"])))
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1).detach()
    losses = [step.loss for step in steps]
    mean = torch.tensor(sum(loss.item() for loss in losses) / k, dtype=torch.float64)
    return Unrolled(
        steps, target_p, mean, losses, _logged(steps[-1].logits.detach(), target_p, batch["loss_mask"], topk)
    )


def _target_distribution(target: Tensor, head: Tensor) -> Tensor:
    """The verifier's softmax over all of V, without gradient."""
    with torch.no_grad():
        logits = target @ head.T
        return torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def _logged(logits: Tensor, target_p: Tensor, loss_mask: Tensor, topk: int) -> dict[str, float]:
    """Cross-entropies of the last step that are reported and never trained on."""
    terms = -target_p * log_softmax(logits)
    likeliest = target_p.topk(topk, dim=-1).indices
    return {
        "train/ploss": masked_mean(terms.sum(-1), loss_mask).item(),
        "train/topkloss": masked_mean(terms.gather(-1, likeliest).sum(-1), loss_mask).item(),
    }


class Layer:
    """Fusion and decoder layer over the TTT steps: remembers every hidden state it was given, all of them detached."""

    def __init__(
        self,
        weights: Weights,
        config: Mapping[str, Any],
        embeds: Tensor,
        mask: Tensor,
        own_position: bool,
        tap: Tap,
        project_once: bool,
    ) -> None:
        self.weights, self.config, self.mask, self.own_position, self.tap = weights, config, mask, own_position, tap
        self.raw_embeds, self.project_once = embeds, project_once
        self.cos, self.sin = rotary_angles(config, embeds.shape[1], embeds.dtype)
        self.history: list[Tensor] = []
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        step = len(self.history)
        fused = self._fused(hidden, step, self.tap)
        query = rotate(self._heads(fused, "q_proj", step, self.tap), self.cos, self.sin)
        keys, values = zip(*self._keys_and_values(fused, step))
        attended = ttt_attention(query, keys, values, self.mask, self.own_position).transpose(1, 2).flatten(2)
        projected = linear(attended, self.weights, f"{LAYER}.self_attn.o_proj")
        self.tap(f"{LAYER}.self_attn.o_proj", step, attended, projected)
        self.tap(f"{LAYER}.self_attn", step, fused, projected)
        middle = fused + projected
        quiet = rms_norm(middle, self.weights[f"{LAYER}.post_attention_layernorm.weight"], self.config["rms_norm_eps"])
        self.tap(f"{LAYER}.post_attention_layernorm", step, middle, quiet)
        out = middle + mlp(quiet, self.weights, f"{LAYER}.mlp", step, self.tap)
        self.tap(LAYER, step, fused, out)
        self.history.append(hidden)
        return out.to(hidden.dtype)

    def _fused(self, hidden: Tensor, step: int, tap: Tap) -> Tensor:
        """u = fc([norm(embedding) ; norm(hidden)]), [B, T, h]."""
        eps = self.config["rms_norm_eps"]
        embeds = rms_norm(self.raw_embeds, self.weights["embed_layernorm.weight"], eps)
        normed = rms_norm(hidden, self.weights["hidden_layernorm.weight"], eps)
        tap("hidden_layernorm", step, hidden, normed)
        joined = torch.cat([embeds, normed], dim=-1)
        fused = linear(joined, self.weights, "fc")
        tap("fc", step, joined, fused)
        return fused

    def _keys_and_values(self, fused: Tensor, step: int) -> list[tuple[Tensor, Tensor]]:
        """Of every step so far. The history is fused and projected again, with gradient, unless it is kept."""
        if self.project_once:
            self.kept.append(self._key_and_value(fused, step, self.tap))
            return self.kept
        past = [self._key_and_value(self._fused(old, i, no_tap), i, no_tap) for i, old in enumerate(self.history)]
        return [*past, self._key_and_value(fused, step, self.tap)]

    def _key_and_value(self, fused: Tensor, step: int, tap: Tap) -> tuple[Tensor, Tensor]:
        key, value = self._heads(fused, "k_proj", step, tap), self._heads(fused, "v_proj", step, tap)
        return rotate(key, self.cos, self.sin), value

    def _heads(self, fused: Tensor, name: str, step: int, tap: Tap) -> Tensor:
        out = linear(fused, self.weights, f"{LAYER}.self_attn.{name}")
        tap(f"{LAYER}.self_attn.{name}", step, fused, out)
        return heads(out, head_dim(self.config))
