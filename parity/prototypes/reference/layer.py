"""The decoder layer over the TTT steps; an algorithm says what enters it.

Shapes: B batch, T positions, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parity.prototypes.reference.attention import ttt_attention
from parity.prototypes.reference.parts import (
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

NAME = "layers.0"


@dataclass
class Entry:
    """What one step brings: ``whole`` is the layer's input, ``attends`` what q, k and v are projected from, and
    ``residual`` where the residual stream starts.
    """

    whole: Tensor
    attends: Tensor
    residual: Tensor


class Layer:
    """Remembers every hidden state it was given."""

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

    def enter(self, hidden: Tensor, step: int, tap: Tap) -> Entry:
        """From the step's hidden state [B, T, h] to what the layer works with."""
        raise NotImplementedError

    def attend(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Attention of the current step, see :func:`ttt_attention`."""
        return ttt_attention(query, keys, values, self.mask, self.own_position)

    def __call__(self, hidden: Tensor) -> Tensor:
        step = len(self.history)
        entry = self.enter(hidden, step, self.tap)
        query = rotate(self._heads(entry.attends, "q_proj", step, self.tap), self.cos, self.sin)
        keys, values = zip(*self._keys_and_values(entry.attends, step))
        attended = self.attend(query, keys, values).transpose(1, 2).flatten(2)
        projected = linear(attended, self.weights, f"{NAME}.self_attn.o_proj")
        self.tap(f"{NAME}.self_attn.o_proj", step, attended, projected)
        self.tap(f"{NAME}.self_attn", step, entry.attends, projected)
        middle = entry.residual + projected
        quiet = self._norm(middle, f"{NAME}.post_attention_layernorm", step, self.tap)
        out = middle + mlp(quiet, self.weights, f"{NAME}.mlp", step, self.tap)
        self.tap(NAME, step, entry.whole, out)
        self.history.append(hidden)
        return out.to(hidden.dtype)

    def _norm(self, x: Tensor, name: str, step: int, tap: Tap) -> Tensor:
        out = rms_norm(x, self.weights[f"{name}.weight"], self.config["rms_norm_eps"])
        tap(name, step, x, out)
        return out

    def _keys_and_values(self, attends: Tensor, step: int) -> list[tuple[Tensor, Tensor]]:
        """Of every step so far. The history enters and is projected again, with gradient, unless it is kept."""
        if self.project_once:
            self.kept.append(self._key_and_value(attends, step, self.tap))
            return self.kept
        past = [
            self._key_and_value(self.enter(old, i, no_tap).attends, i, no_tap) for i, old in enumerate(self.history)
        ]
        return [*past, self._key_and_value(attends, step, self.tap)]

    def _key_and_value(self, attends: Tensor, step: int, tap: Tap) -> tuple[Tensor, Tensor]:
        key, value = self._heads(attends, "k_proj", step, tap), self._heads(attends, "v_proj", step, tap)
        return rotate(key, self.cos, self.sin), value

    def _heads(self, attends: Tensor, name: str, step: int, tap: Tap) -> Tensor:
        out = linear(attends, self.weights, f"{NAME}.self_attn.{name}")
        tap(f"{NAME}.self_attn.{name}", step, attends, out)
        return heads(out, head_dim(self.config))
