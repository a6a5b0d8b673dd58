"""Eagle3 and HASS: the drafts unrolled over TTT steps, and their objectives.

Shapes: B batch, T positions, h hidden size, V verifier vocabulary, D the vocabulary the draft speaks, k TTT steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parity.prototypes.reference.layer import NAME, Entry, Layer, Weights

Batch = Mapping[str, Tensor]
"""``input_ids``, ``hidden_states`` ([B, T, 3h] for Eagle3), ``target`` [B, T, h], ``attention_mask``, ``loss_mask``."""


@dataclass
class Step:
    """One TTT step: ``hidden_in``, ``hidden`` [B, T, h], ``logits`` [B, T, D], ``loss`` scalar."""

    hidden_in: Tensor
    hidden: Tensor
    logits: Tensor
    loss: Tensor


@dataclass
class Unrolled:
    """A forward: the steps, the verifier's distribution [B, T, D], the loss as reported and the backwards to run.

    ``backward`` lists the losses that get a backward of their own, in order; their gradients add up.
    """

    steps: Sequence[Step]
    target_p: Tensor
    loss: Tensor
    backward: Sequence[Tensor]
    logged: dict[str, float] = field(default_factory=dict)


def eagle3(
    weights: Weights, config: Mapping[str, Any], batch: Batch, head: Tensor, t2d: Tensor, k: int, **options: Any
) -> Unrolled:
    """The loss is the plain sum over the steps, with one backward through all.

    Args:
        weights: draft parameters by Speculators' names; their dtype is the dtype of the computation.
        config: the draft config as the prototype reads it.
        batch: see :data:`Batch`.
        head: the verifier's output head [V, h].
        t2d: bool [V], the columns of the verifier's logits that the draft's vocabulary keeps.
        k: how many steps.
        options: ``own_position`` and ``tap`` of :class:`Layer`.
    """
    target_p = target_distribution(batch["target"], head, t2d)
    layer = Eagle3Layer(weights, config, _embeds(weights, batch), batch["attention_mask"], **options)
    hidden = layer.linear(batch["hidden_states"].to(weights["fc.weight"].dtype), "fc")
    steps = _unroll(layer, hidden, k, target_p, batch["loss_mask"])
    total = torch.stack([step.loss for step in steps]).sum()
    return Unrolled(steps, target_p, total, [total])


def hass(
    weights: Weights, config: Mapping[str, Any], batch: Batch, head: Tensor, k: int, topk: int, **options: Any
) -> Unrolled:
    """Every step has a backward of its own and enters the next detached; what is reported is the losses' mean.

    Args:
        weights, config, batch, head, k, options: as for :func:`eagle3`; the draft speaks the whole of V.
        topk: how many of the verifier's likeliest tokens the logged top-k loss covers.
    """
    head = head.to(weights["fc.weight"].dtype)
    target_p = target_distribution(batch["target"], head)
    weights = {**weights, "lm_head.weight": head}
    layer = HassLayer(weights, config, _embeds(weights, batch), batch["attention_mask"], **options)
    hidden = batch["hidden_states"].to(head.dtype)
    steps = _unroll(layer, hidden, k, target_p, batch["loss_mask"], detached=True)
    losses = [step.loss for step in steps]
    mean = torch.tensor(sum(loss.item() for loss in losses) / k, dtype=torch.float64)
    logged = _cross_entropies(steps[-1].logits.detach(), target_p, batch["loss_mask"], topk)
    return Unrolled(steps, target_p, mean, losses, logged)


class Eagle3Layer(Layer):
    """Embedding and hidden state, each normed, stand side by side; the residual is the normed hidden state."""

    def enter(self, hidden: Tensor) -> Entry:
        """``attends`` is [B, T, 2h], the embedding half first."""
        whole = torch.cat([self.raw_embeds, hidden], dim=-1)
        raw, own = whole.chunk(2, dim=-1) if self.tap else (self.raw_embeds, hidden)
        embeds, normed = self.norm(raw, f"{NAME}.input_layernorm"), self.norm(own, f"{NAME}.hidden_norm")
        return Entry(whole, torch.cat([embeds, normed], dim=-1), normed)


class HassLayer(Layer):
    """u = fc([norm(embedding) ; norm(hidden)]) feeds both the attention and the residual; the states are detached."""

    final_norm = "lm_head_layernorm"

    def enter(self, hidden: Tensor) -> Entry:
        """All three parts are u, [B, T, h]."""
        embeds, normed = self.norm(self.raw_embeds, "embed_layernorm"), self.norm(hidden, "hidden_layernorm")
        fused = self.linear(torch.cat([embeds, normed], dim=-1), "fc")
        return Entry(fused, fused, fused)


def _embeds(weights: Weights, batch: Batch) -> Tensor:
    return weights["embed_tokens.weight"][batch["input_ids"]].detach()


def _unroll(
    layer: Layer, hidden: Tensor, k: int, target_p: Tensor, loss_mask: Tensor, detached: bool = False
) -> list[Step]:
    """What a step gives enters the next one moved on by a position; the first position stays as it is."""
    steps: list[Step] = []
    for _ in range(k):
        out = layer(hidden)
        logits = layer.logits(out)
        steps.append(Step(hidden, out, logits, kl_loss(logits, target_p, loss_mask)))
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
        hidden = hidden.detach() if detached else hidden
    return steps


@torch.no_grad()
def target_distribution(target: Tensor, head: Tensor, t2d: Tensor | None = None) -> Tensor:
    """softmax over the verifier's logits, those of the draft's vocabulary alone where it has one."""
    logits = target.to(head.dtype) @ head.T
    return torch.softmax(_wide(logits if t2d is None else logits[..., t2d]), dim=-1)


def kl_loss(logits: Tensor, target_p: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean of KL(target || softmax(logits)) over the rows in the loss, 0 log 0 = 0."""
    divergence = torch.special.xlogy(target_p, target_p) - target_p * log_softmax(logits)
    return masked_mean(divergence.sum(-1), loss_mask)


def _cross_entropies(logits: Tensor, target_p: Tensor, loss_mask: Tensor, topk: int) -> dict[str, float]:
    """Of the last step, over all tokens and over the likeliest: reported and never trained on."""
    terms = -target_p * log_softmax(logits)
    likeliest = terms.gather(-1, target_p.topk(topk, dim=-1).indices)
    named = {"train/ploss": terms, "train/topkloss": likeliest}
    return {name: masked_mean(values.sum(-1), loss_mask).item() for name, values in named.items()}


def log_softmax(logits: Tensor) -> Tensor:
    """In float32 or wider."""
    return torch.log_softmax(_wide(logits), dim=-1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_mean(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum over the rows in the loss, by their number + 1e-5."""
    return (values * loss_mask).sum() / (loss_mask.sum() + 1e-5)
