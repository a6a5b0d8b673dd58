"""EAGLE's ``traineagle3`` as the prototype's formulas with causes put in.

Shapes: B batch, T positions, h hidden size, V verifier vocabulary, D draft vocabulary. Everything is in the prototypes'
positions; see :mod:`parity.prototypes.others.eagle` for EAGLE's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.prototypes.explain.study import Cause
from parity.prototypes.reference.drafts import Eagle3Layer, log_softmax
from parity.prototypes.reference.layer import Entry, Tap, linear, no_tap, rms_norm
from parity.prototypes.reference.loop import Setup

LOSS_CAUSES = (
    Cause("cross-entropy", "the loss of a row is the cross-entropy; the verifier's entropy is not taken off"),
    Cause(
        "mean-over-positions",
        "a step's loss is divided by all positions, padding too, not by the rows in the loss",
    ),
    Cause("vocabulary-rows", "rows whose likeliest token is not in the draft's vocabulary are left out"),
    Cause("step-weights", "the total weighs later steps less, see the settings below"),
)
CAUSES = (
    Cause("residual", "the residual stream starts at the hidden state itself, not at the normed one"),
    Cause("chain-keys", "keys and values of earlier steps are read where the chain has them (`own-position-kv`)"),
    Cause("rope", "rotary frequencies have a fixed base and no scaling, whatever the draft config says"),
    Cause("leading-rows", "positions p < s are not there: ids and targets move to the left, the states stay"),
    Cause("last-row", "the mask of the last position is not switched off"),
    *LOSS_CAUSES,
)


@dataclass(frozen=True)
class Batch:
    """Shifted as the prototypes shift: ids [B, T], features [B, T, 3h], target [B, T, h], its logits [B, T, V].

    ``real``, ``mask`` and ``raw_mask`` [B, T]; ``mask`` has the last position of every sample off, ``raw_mask`` not.
    """

    input_ids: Tensor
    features: Tensor
    target: Tensor
    target_logits: Tensor
    real: Tensor
    mask: Tensor
    raw_mask: Tensor


class EagleLayer(Eagle3Layer):
    """The prototype's layer, with the residual from before the norm where ``raw_residual`` says so."""

    raw_residual = False

    def enter(self, hidden: Tensor, step: int, tap: Tap) -> Entry:
        entry = super().enter(hidden, step, tap)
        return replace(entry, residual=hidden) if self.raw_residual else entry


def eagle(setup: Setup, batch: Batch, facts: Mapping[str, Any], causes: frozenset[str]) -> dict[str, Tensor]:
    """Tensors of the first batch with the given causes in."""
    weights = setup.weights()
    hidden, logits = unroll(setup, weights, batch, facts, causes)
    mask = batch.raw_mask if "last-row" in causes else batch.mask
    losses = step_losses(logits, batch.target_logits, setup.t2d, mask, causes, leading="leading-rows" not in causes)
    total = weighted(losses, facts, causes)
    total.backward()
    grads = {f"grad.{name}": value.grad for name, value in weights.items() if value.grad is not None}
    return {**named(hidden, logits, losses, total, batch.real), **grads}


def unroll(
    setup: Setup, weights: Mapping[str, Tensor], batch: Batch, facts: Mapping[str, Any], causes: frozenset[str]
) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states [B, T, h] and logits [B, T, D] of every step."""
    plain_rope = {"rope_theta": facts["rope_base"], "rope_scaling": None} if "rope" in causes else {}
    config = {**setup.config, **plain_rope}
    embeds = weights["embed_tokens.weight"][batch.input_ids].detach()
    layer = EagleLayer(weights, config, embeds, batch.real, "chain-keys" not in causes, no_tap, project_once=False)
    layer.raw_residual = "residual" in causes
    hidden, states, logits = linear(batch.features, weights, "fc"), [], []
    for _ in range(setup.case.ttt_steps):
        out = layer(hidden)
        states.append(out)
        logits.append(linear(rms_norm(out, weights["norm.weight"], config["rms_norm_eps"]), weights, "lm_head"))
        hidden = torch.cat([hidden[:, :1], out[:, :-1]], dim=1)
    return states, logits


def step_losses(
    logits: Sequence[Tensor], target_logits: Tensor, t2d: Tensor, mask: Tensor, causes: frozenset[str], leading: bool
) -> list[Tensor]:
    """The loss of every step; ``leading``: positions p < s are trained too."""
    target = torch.softmax(target_logits[..., t2d], dim=-1)
    rows = mask.bool() & t2d[target_logits.argmax(-1)] if "vocabulary-rows" in causes else mask.bool()
    entropy = 0.0 if "cross-entropy" in causes else torch.special.xlogy(target, target)
    losses = []
    for step, values in enumerate(logits):
        counted = rows.clone()
        counted[:, : 0 if leading else step] = False
        per_row = (entropy - target * log_softmax(values)).sum(-1)
        size = float(mask.numel()) if "mean-over-positions" in causes else counted.sum() + 1e-5
        losses.append((per_row * counted).sum() / size)
    return losses


def weighted(losses: Sequence[Tensor], facts: Mapping[str, Any], causes: frozenset[str]) -> Tensor:
    """The total that gets a backward."""
    weights = facts["step_weights"] if "step-weights" in causes else [1.0] * len(losses)
    return torch.stack([weight * loss for weight, loss in zip(weights, losses)]).sum()


def named(
    hidden: Sequence[Tensor], logits: Sequence[Tensor], losses: Sequence[Tensor], total: Tensor, real: Tensor
) -> dict[str, Tensor]:
    """Under the names of a trace; states at the positions p >= s that are real, [rows, ...]."""
    tensors = {"loss": total.detach().reshape(1)}
    for step, (state, values, loss) in enumerate(zip(hidden, logits, losses)):
        tensors[f"step{step}.hidden"] = state.detach()[:, step:][real[:, step:].bool()]
        tensors[f"step{step}.logits"] = values.detach()[:, step:][real[:, step:].bool()]
        tensors[f"step{step}.loss"] = loss.detach().reshape(1)
    return tensors


def aligned(theirs: Mapping[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """EAGLE's trace at the same positions: its index q at step s is p = q + s. Its own features are ``features``."""
    tensors = {name: value for name, value in theirs.items() if not name.startswith("own.")}
    for name, step in _states(tensors):
        value = tensors[name]
        tensors[name] = value[:, : value.shape[1] - step][real[:, step:].bool()]
    return {**tensors, "features": theirs["own.features"][real.bool()]}


def at_positions(recorded: Mapping[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """The prototype's trace at the positions that EAGLE has."""
    chosen = {name: recorded[name][:, step:][real[:, step:].bool()] for name, step in _states(recorded)}
    return {**recorded, **chosen}


def _states(tensors: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Hidden states and logits with their step."""
    return [(name, int(name[4 : name.index(".")])) for name in tensors if name.endswith((".hidden", ".logits"))]
