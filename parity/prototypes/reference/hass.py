"""HASS: the draft model unrolled over TTT steps, and its objective.

Shapes: B batch, T positions, h hidden size, V the verifier's vocabulary, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parity.prototypes.reference.layer import Entry, Layer
from parity.prototypes.reference.parts import Tap, Weights, linear, no_tap, rms_norm
from parity.prototypes.reference.steps import Step, Unrolled, kl_loss, log_softmax, masked_mean


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
    layer = HassLayer(weights, config, embeds, batch["attention_mask"], own_position, tap, project_once)
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


class HassLayer(Layer):
    """u = fc([norm(embedding) ; norm(hidden)]) feeds both the attention and the residual; the states are detached."""

    def enter(self, hidden: Tensor, step: int, tap: Tap) -> Entry:
        """All three parts are u, [B, T, h]."""
        embeds = self._norm(self.raw_embeds, "embed_layernorm", step, no_tap)
        normed = self._norm(hidden, "hidden_layernorm", step, tap)
        joined = torch.cat([embeds, normed], dim=-1)
        fused = linear(joined, self.weights, "fc")
        tap("fc", step, joined, fused)
        return Entry(fused, fused, fused)
