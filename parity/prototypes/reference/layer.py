"""A Llama layer over the TTT steps, with its norm, rotary embedding and MLP; an algorithm says what enters it.

Shapes: B batch, T positions, h hidden size, N heads, e head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from parity.prototypes.reference.attention import ttt_attention

NAME = "layers.0"

Weights = Mapping[str, Tensor]
"""Parameters by Speculators' names."""

Tap = Callable[[str, int, Tensor, Tensor], None]
"""``tap(module, step, input, output)`` sees what flows through a module at a TTT step."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``w * (x / sqrt(mean(x^2) + eps))`` over the last axis, the bracket in float32 or wider (Zhang 2019)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the half-split pairs of x [B, N, T, e] by the angles of its positions (Su et al. 2021)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def rotary_angles(config: Mapping[str, Any], length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, e] for positions 0..T-1, computed in float32 or wider and cast to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    angles = torch.arange(length, dtype=wide)[:, None] * rope_frequencies(config, wide)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_frequencies(config: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """[e / 2] inverse frequencies of a draft config: default, linear or llama3 scaling.

    ``rope_parameters`` is how transformers 5 writes ``rope_theta`` and ``rope_scaling``.
    """
    dim = head_dim(config)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(dtype) / dim
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    frequencies = 1.0 / (scaling.get("rope_theta", config.get("rope_theta", 10000.0)) ** exponents)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise ValueError(f"rope_scaling.rope_type: found {kind}, expected default, linear or llama3")


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long waves are stretched by ``factor``, short ones kept, those between blended (Llama 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = scaling["original_max_position_embeddings"] / (2 * math.pi / frequencies)
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies


def head_dim(config: Mapping[str, Any]) -> int:
    """The head dimension a draft config names or implies."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


@dataclass
class Entry:
    """What one step brings: ``whole`` is the layer's input, ``attends`` what q, k and v are projected from, and
    ``residual`` where the residual stream starts.
    """

    whole: Tensor
    attends: Tensor
    residual: Tensor


@dataclass
class Layer:
    """Remembers every hidden state it was given.

    Args:
        weights, config: of the draft; the weights' dtype is that of the computation.
        raw_embeds: [B, T, h], of the tokens, not normed.
        mask: [B, T], 1 on real positions.
        own_position: read earlier steps' keys at the query's position (the prototypes) or in the chain.
        tap: sees the modules' inputs and outputs. So that each runs once a step, keys and values are then kept instead
            of projecting the history again. The numbers are the same, but all steps of an algorithm that detaches its
            states share one graph.
    """

    weights: Weights
    config: Mapping[str, Any]
    raw_embeds: Tensor
    mask: Tensor
    own_position: bool = True
    tap: Tap | None = None
    history: list[Tensor] = field(default_factory=list, init=False)
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)
    final_norm: ClassVar[str] = "norm"

    def __post_init__(self) -> None:
        self.angles = rotary_angles(self.config, self.raw_embeds.shape[1], self.raw_embeds.dtype)

    def enter(self, hidden: Tensor) -> Entry:
        """From the step's hidden state [B, T, h] to what the layer works with."""
        raise NotImplementedError

    def attend(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Attention of the current step, see :func:`ttt_attention`."""
        return ttt_attention(query, keys, values, self.mask, self.own_position)

    def __call__(self, hidden: Tensor) -> Tensor:
        self.history.append(hidden)
        entry = self.enter(hidden)
        query = rotate(self._heads(entry.attends, "q_proj"), *self.angles)
        keys, values = zip(*self._keys_and_values(entry.attends))
        attended = self.attend(query, keys, values).transpose(1, 2).flatten(2)
        projected = self.linear(attended, f"{NAME}.self_attn.o_proj")
        self._seen(f"{NAME}.self_attn", entry.attends, projected)
        middle = entry.residual + projected
        out = middle + self.mlp(self.norm(middle, f"{NAME}.post_attention_layernorm"), f"{NAME}.mlp")
        return self._seen(NAME, entry.whole, out).to(hidden.dtype)

    def logits(self, out: Tensor) -> Tensor:
        """[B, T, D], of what came out of the layer."""
        return self.linear(self.norm(out, self.final_norm), "lm_head")

    def linear(self, x: Tensor, name: str) -> Tensor:
        """``x W^T + b`` with the bias only where the model has one."""
        out, bias = x @ self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias")
        return self._seen(name, x, out if bias is None else out + bias)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """:func:`rms_norm` with the weight of that name."""
        return self._seen(name, x, rms_norm(x, self.weights[f"{name}.weight"], self.config.get("rms_norm_eps", 1e-6)))

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """The gated SiLU MLP."""
        gate, up = (self.linear(x, f"{name}.{each}_proj") for each in ("gate", "up"))
        return self._seen(name, x, self.linear(torch.nn.functional.silu(gate) * up, f"{name}.down_proj"))

    def _seen(self, name: str, into: Tensor, out: Tensor) -> Tensor:
        """What comes out of a module; what is before the layer belongs to the first step."""
        if self.tap is not None:
            self.tap(name, max(0, len(self.history) - 1), into, out)
        return out

    def _keys_and_values(self, attends: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of every step so far. The history enters and is projected again, with gradient, unless it is kept."""
        own = self._key_and_value(attends)
        if self.tap is None:
            return [*(self._key_and_value(self.enter(old).attends) for old in self.history[:-1]), own]
        self.kept.append(own)
        return self.kept

    def _key_and_value(self, attends: Tensor) -> tuple[Tensor, Tensor]:
        key, value = (self._heads(attends, name) for name in ("k_proj", "v_proj"))
        return rotate(key, *self.angles), value

    def _heads(self, attends: Tensor, name: str) -> Tensor:
        """[B, T, .] -> [B, N, T, e]."""
        out = self.linear(attends, f"{NAME}.self_attn.{name}")
        return out.view(*out.shape[:2], -1, head_dim(self.config)).transpose(1, 2)
