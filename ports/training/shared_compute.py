"""What buys time or memory and changes no number: :func:`run_layers`, and the products that TTT steps share.

Shapes: B batch, T positions, h hidden size, N rows that are trained on.

Trained rows: a prompt's rows, and padding, are in no loss. Where nothing else reads a row's output with gradient - at
the last TTT step, and wherever the next step's input is detached - that gradient is zero, and so is all that the norm,
the MLP and the residual sum would make of it. Such rows run forward alone: no backward, no activations kept. What
enters the attention of other rows through a row's keys and values has its gradient as ever.

Recompute: a decoder layer keeps its input alone and runs again in the backward. transformers' own switch takes the
key/value cache away from a layer, since a layer that runs twice would write to it twice. Here the second run finds in
the cache what the first one found, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from speculators.models.base_components import model_classes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from ports.training.draft_config import LAYER_CONFIGS
from ports.training.masks import rows_in_loss

Layer = Callable[..., Tensor]
"""A decoder layer, or what stands for one: from [B, T, h] and the layers' context to [B, T, h]."""

RowWise = Callable[[Tensor], Tensor]
"""From [1, N, h] to [1, N, h], every row by itself."""


def run_layers(
    layers: Sequence[Layer] | nn.ModuleList,
    hidden: Tensor,
    cache: Cache,
    recompute: bool = False,
    rows: TrainedRows | None = None,
    **context: Any,
) -> Tensor:
    """``layer(hidden, past_key_values=cache, **context)``, one layer after the other.

    Args:
        layers: decoder layers, or an :class:`OpenLayer`.
        hidden: [B, T, h].
        cache: keys and values of earlier TTT steps; this step's are added.
        recompute: keep no activations but the keys and values, which later steps read. Nothing in a layer draws random
            numbers, so no generator is put back for the second run.
        rows: those whose output has a gradient. Default: all.
        context: the layers' other arguments.
    """
    for layer in layers:
        run = _on_rows(layer, rows) if layer is layers[-1] else layer
        if recompute:
            again = partial(run, past_key_values=_OnceWritten(cache), **context)
            hidden = checkpoint(again, hidden, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = run(hidden, past_key_values=cache, **context)
    return hidden


def product_dtype(states: Tensor) -> torch.dtype:
    """What products with ``states`` are taken in: autocast's dtype where that is on, else their own."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def is_watched(module: nn.Module) -> bool:
    """Has a hook inside the module (a sharded module's, a tracer's) to see its modules called?"""
    return any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())


class OpenLayer:
    """A decoder layer called through its own modules: attention on all rows, then norm, MLP and sum on ``rows``."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor, rows: TrainedRows | None = None, **context: Any) -> Tensor:
        out = self.attend(hidden, **context)
        return self.feed(out) if rows is None else rows.apply(self.feed, out)

    def attend(
        self, hidden: Tensor, attention_mask: Tensor, past_key_values: Cache, position_embeddings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """``hidden`` plus the attention of its norm, [B, T, h]."""
        attended, _ = self.layer.self_attn(
            hidden_states=self.layer.input_layernorm(hidden),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
        )
        return hidden + attended

    def feed(self, states: Tensor) -> Tensor:
        """``states`` plus the MLP of their norm, [..., h]."""
        fed: Tensor = self.layer.mlp(self.layer.post_attention_layernorm(states))
        return states + fed


def _on_rows(layer: Layer, rows: TrainedRows | None) -> Layer:
    """``layer`` with its row-wise half on ``rows``; as it is where it is not known how to open it."""
    if rows is None:
        return layer
    known = [model_classes[name].decoder_layer_class for name in LAYER_CONFIGS]
    if type(layer) in known and not is_watched(layer):  # type: ignore[arg-type]
        layer = OpenLayer(layer)
    return partial(layer, rows=rows) if isinstance(layer, OpenLayer) else layer


class TrainedRows:
    """The rows of a batch that are trained on.

    Args:
        mask: [B, T], not 0 on those rows.
    """

    def __init__(self, mask: Tensor) -> None:
        self.trained, self.others = rows_in_loss(mask)

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


class _OnceWritten:
    """A cache as one call of a layer sees it: the first update writes, every later one is the call over again."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._before: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Keys and values [B, K, T, e] of all steps up to this one, as two tuples."""
        if self._before is not None:
            keys, values = self._before
            return (*keys, key_states), (*values, value_states)
        keys, values = self._cache.update(key_states, value_states, layer_idx, *args, **kwargs)
        self._before = keys[:-1], values[:-1]
        return keys, values


class SharedHalf:
    """A product with [a, b_s] where a is the same at every TTT step s: called with b_s [B, T, h] it gives [B, T, M].

        [a, b_s] W^T = a W[:, :h]^T + b_s W[:, h:]^T

    The first term, half of the cost, is computed once and its gradient once, from the steps' sum. In autocast all is of
    its dtype, the weight cast once.

    Args:
        first: a, [B, T, h].
        weight: W, [M, 2h].
        bias: [M] or None.
    """

    def __init__(self, first: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        dtype = product_dtype(weight)
        of_first, self.of_second = weight.to(dtype).chunk(2, dim=1)
        self.shared = F.linear(first.to(dtype), of_first, bias).flatten(0, 1)

    def __call__(self, second: Tensor) -> Tensor:
        product = torch.addmm(self.shared, second.flatten(0, 1), self.of_second.t())
        return product.unflatten(0, second.shape[:2])


def can_split(module: nn.Module, projections: Sequence[nn.Module]) -> bool:
    """May the products with ``projections``, which lie in ``module``, be taken in halves?

    Not where weights themselves are in half precision, or where they are no plain product with one weight (LoRA's,
    quantised ones); not while somebody watches the module.
    """
    wide = (torch.float32, torch.float64)
    return not is_watched(module) and all(type(each) is nn.Linear and each.weight.dtype in wide for each in projections)
