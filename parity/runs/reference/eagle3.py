"""Eagle3: the draft model unrolled over TTT steps, and its objective.

Shapes: B batch, T positions, h hidden size, V verifier vocabulary, D draft vocabulary, k TTT steps.
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
from parity.runs.reference.steps import Step, Unrolled, kl_loss

LAYER = "layers.0"


def forward(
    weights: Weights,
    config: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    head: Tensor,
    t2d: Tensor,
    k: int,
    own_position: bool = True,
    tap: Tap = no_tap,
    project_once: bool = False,
) -> Unrolled:
    """Unroll ``k`` steps and score them; the loss is the plain sum over the steps, with one backward through all.

    Args:
        weights: draft parameters by Speculators' names; their dtype is the dtype of the computation.
        config: the draft config as the prototype reads it.
        batch: ``input_ids``, ``hidden_states`` [B, T, 3h], ``target`` [B, T, h], ``attention_mask``, ``loss_mask``.
        head: the verifier's output head [V, h].
        t2d: bool [V].
        own_position: read earlier steps' keys at the query's position (the prototype) or in the chain.
        tap: sees the modules' inputs and outputs.
        project_once: keep keys and values instead of projecting the history again; the numbers are the same.
    """
    target_p = target_distribution(batch["target"], head, t2d)
    hidden = linear(batch["hidden_states"].to(weights["fc.weight"].dtype), weights, "fc")
    tap("fc", 0, batch["hidden_states"], hidden)
    embeds = weights["embed_tokens.weight"][batch["input_ids"]].detach().to(hidden.dtype)
    layer = Layer(weights, config, embeds, batch["attention_mask"], own_position, tap, project_once)
    steps = []
    for s in range(k):
        out = layer(hidden)
        normed = rms_norm(out, weights["norm.weight"], config["rms_norm_eps"])
        logits = linear(normed, weights, "lm_head")
        tap("norm", s, out, normed)
        tap("lm_head", s, normed, logits)
        steps.append(Step(hidden, out, logits, kl_loss(logits, target_p, batch["loss_mask"])))
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
    total = torch.stack([step.loss for step in steps]).sum()
    return Unrolled(steps, target_p, total, [total])


def target_distribution(target: Tensor, head: Tensor, t2d: Tensor) -> Tensor:
    """softmax over the kept columns of the verifier's logits, without gradient."""
    with torch.no_grad():
        wide = torch.promote_types(head.dtype, torch.float32)
        return torch.softmax((target.to(wide) @ head.T)[..., t2d], dim=-1)


class Layer:
    """The decoder layer over the TTT steps: remembers every hidden state it was given."""

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
        pair = torch.cat([self.raw_embeds, hidden], dim=-1)
        raw, own = pair.chunk(2, dim=-1) if self.project_once else (self.raw_embeds, hidden)
        joined, normed = self._joined(raw, own, step)
        query = rotate(self._heads(joined, "q_proj", step), self.cos, self.sin)
        keys, values = zip(*self._keys_and_values(joined, step))
        attended = ttt_attention(query, keys, values, self.mask, self.own_position)
        attended = attended.transpose(1, 2).flatten(2)
        projected = linear(attended, self.weights, f"{LAYER}.self_attn.o_proj")
        self.tap(f"{LAYER}.self_attn.o_proj", step, attended, projected)
        self.tap(f"{LAYER}.self_attn", step, joined, projected)
        middle = normed + projected
        quiet = rms_norm(middle, self.weights[f"{LAYER}.post_attention_layernorm.weight"], self.config["rms_norm_eps"])
        self.tap(f"{LAYER}.post_attention_layernorm", step, middle, quiet)
        out = middle + mlp(quiet, self.weights, f"{LAYER}.mlp", step, self.tap)
        self.tap(LAYER, step, pair, out)
        self.history.append(hidden)
        return out

    def _joined(self, raw: Tensor, hidden: Tensor, step: int, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
        """Embedding and hidden state, each normed, side by side [B, T, 2h]; and the normed hidden state alone."""
        tap, eps = tap or self.tap, self.config["rms_norm_eps"]
        embeds = rms_norm(raw, self.weights[f"{LAYER}.input_layernorm.weight"], eps)
        normed = rms_norm(hidden, self.weights[f"{LAYER}.hidden_norm.weight"], eps)
        tap(f"{LAYER}.input_layernorm", step, raw, embeds)
        tap(f"{LAYER}.hidden_norm", step, hidden, normed)
        return torch.cat([embeds, normed], dim=-1), normed

    def _keys_and_values(self, joined: Tensor, step: int) -> list[tuple[Tensor, Tensor]]:
        """Of every step so far. The history is normed and projected again, with gradient, unless it is kept."""
        if self.project_once:
            self.kept.append(self._key_and_value(joined, step, self.tap))
            return self.kept
        past = [self._key_and_value(self._rejoined(hidden), i, no_tap) for i, hidden in enumerate(self.history)]
        return [*past, self._key_and_value(joined, step, self.tap)]

    def _rejoined(self, hidden: Tensor) -> Tensor:
        return self._joined(self.raw_embeds, hidden, 0, no_tap)[0]

    def _key_and_value(self, joined: Tensor, step: int, tap: Tap) -> tuple[Tensor, Tensor]:
        key, value = (linear(joined, self.weights, f"{LAYER}.self_attn.{name}") for name in ("k_proj", "v_proj"))
        tap(f"{LAYER}.self_attn.k_proj", step, joined, key)
        tap(f"{LAYER}.self_attn.v_proj", step, joined, value)
        size = head_dim(self.config)
        return rotate(heads(key, size), self.cos, self.sin), heads(value, size)

    def _heads(self, joined: Tensor, name: str, step: int) -> Tensor:
        out = linear(joined, self.weights, f"{LAYER}.self_attn.{name}")
        self.tap(f"{LAYER}.self_attn.{name}", step, joined, out)
        return heads(out, head_dim(self.config))
