"""Eagle3: the draft model unrolled over TTT steps, and its objective.

Shapes: B batch, T positions, h hidden size, V verifier vocabulary, D draft vocabulary, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parity.prototypes.reference.layer import NAME, Entry, Layer
from parity.prototypes.reference.parts import Tap, Weights, linear, no_tap, rms_norm
from parity.prototypes.reference.steps import Step, Unrolled, kl_loss


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
    layer = Eagle3Layer(weights, config, embeds, batch["attention_mask"], own_position, tap, project_once)
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


class Eagle3Layer(Layer):
    """Embedding and hidden state, each normed, stand side by side; the residual is the normed hidden state."""

    def enter(self, hidden: Tensor, step: int, tap: Tap) -> Entry:
        """``attends`` is [B, T, 2h], the embedding half first."""
        whole = torch.cat([self.raw_embeds, hidden], dim=-1)
        raw, own = whole.chunk(2, dim=-1) if self.project_once else (self.raw_embeds, hidden)
        embeds = self._norm(raw, f"{NAME}.input_layernorm", step, tap)
        normed = self._norm(own, f"{NAME}.hidden_norm", step, tap)
        return Entry(whole, torch.cat([embeds, normed], dim=-1), normed)
