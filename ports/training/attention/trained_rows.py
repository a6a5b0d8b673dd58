"""A layer's row-wise half with gradient on the rows alone whose output somebody trains on.

Shapes: B batch, T positions, h hidden size, N rows that are trained on.

A prompt's rows, and padding, are in no loss. Where nothing else reads a row's output with gradient - at the last TTT
step, and wherever the next step's input is detached - that gradient is zero, and so is all that the norm, the MLP and
the residual sum would make of it. Such rows run forward alone: no backward, no activations kept. What enters the
attention of other rows through a row's keys and values has its gradient as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from speculators.models.base_components import model_classes
from torch import Tensor, nn

from ports.training.draft_config import LAYER_CONFIGS

RowWise = Callable[[Tensor], Tensor]
"""From [1, N, h] to [1, N, h], every row by itself."""


class TrainedRows:
    """The rows of a batch that are trained on.

    Args:
        mask: [B, T], not 0 on those rows.
    """

    def __init__(self, mask: Tensor) -> None:
        marked = mask.flatten() != 0
        order, count = torch.argsort(marked.int(), stable=True), int(marked.sum())
        self.others, self.trained = order.split([len(order) - count, count])

    def apply(self, function: RowWise, states: Tensor) -> Tensor:
        """``function(states)`` [B, T, h]; no gradient enters it on the other rows.

        Where no row is trained on, its weights still get a gradient, of zeros: optimizers and DDP wait for all of them.
        """
        if not torch.is_grad_enabled() or len(self.others) == 0:
            return function(states)
        rows = states.flatten(0, 1)
        trained = function(rows.index_select(0, self.trained)[None])[0]
        with torch.no_grad():  # second: torch 2.10's autocast keeps weights as the first use cast them, gradient or not
            rest = function(rows[None, self.others])[0]
            out = rest.new_empty(rows.shape).index_copy_(0, self.others, rest)
        return out.index_copy(0, self.trained, trained).view_as(states)


def through_rows(rows: TrainedRows | None, function: RowWise, states: Tensor) -> Tensor:
    """``function(states)``, with ``rows`` through them alone."""
    return function(states) if rows is None else rows.apply(function, states)


def on_trained_rows(layer: Any, rows: TrainedRows | None) -> Callable[..., Tensor]:
    """``layer``, called through its own modules with its row-wise half on ``rows``.

    As it is, if there are no such rows, if it is no decoder layer that drafts are known to be made of (attention and
    MLP, each after a norm and added to its input), or if a hook (a sharded module's, a tracer's) has to see it called.
    """
    if rows is None or not _is_plain(layer):
        return layer
    return _Halves(layer, rows)


def _is_plain(layer: nn.Module) -> bool:
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    return not hooked and any(type(layer) is model_classes[name].decoder_layer_class for name in LAYER_CONFIGS)


class _Halves:
    """Attention on all rows, then norm, MLP and residual sum on those that are trained on."""

    def __init__(self, layer: Any, rows: TrainedRows) -> None:
        self.layer, self.rows = layer, rows

    def __call__(self, hidden: Tensor, **context: Any) -> Tensor:
        attended, _ = self.layer.self_attn(hidden_states=self.layer.input_layernorm(hidden), **context)
        return self.rows.apply(lambda states: feed(self.layer, states), hidden + attended)


def feed(layer: Any, states: Tensor) -> Tensor:
    """The half after the attention: ``states`` plus the MLP of their norm, [..., h]."""
    fed: Tensor = layer.mlp(layer.post_attention_layernorm(states))
    return states + fed
