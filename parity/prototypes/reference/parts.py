"""Norm, rotary embedding and linear maps of a Llama layer.

Shapes: B batch, T positions, h hidden size, N heads, e head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Parameters by Speculators' names."""

Tap = Callable[[str, int, Tensor, Tensor], None]
"""``tap(module, step, input, output)`` sees what flows through a module at a TTT step."""


def no_tap(module: str, step: int, into: Tensor, out: Tensor) -> None:
    """Look at nothing."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``w * (x / sqrt(mean(x^2) + eps))`` over the last axis, the bracket in float32 or wider (Zhang 2019)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """``x W^T + b`` with the bias only where the model has one."""
    out = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, T, N * e] -> [B, N, T, e]."""
    return x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the half-split pairs of x [B, N, T, e] by the angles of its positions (Su et al. 2021)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def rotary_angles(config: Any, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, e] for positions 0..T-1, computed in float32 or wider and cast to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    frequencies = rope_frequencies(config, wide)
    angles = torch.arange(length, dtype=wide)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_frequencies(config: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """[e / 2] inverse frequencies of a draft config: default, linear or llama3 scaling."""
    dim = head_dim(config)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(dtype) / dim
    frequencies = 1.0 / (config.get("rope_theta", 10000.0) ** exponents)
    scaling = config.get("rope_scaling") or {}
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
    original, low, high = (
        scaling["original_max_position_embeddings"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
    )
    wavelengths = 2 * math.pi / frequencies
    stretched = frequencies / scaling["factor"]
    share = (original / wavelengths - low) / (high - low)
    blended = (1 - share) * stretched + share * frequencies
    result = torch.where(wavelengths > original / low, stretched, blended)
    return torch.where(wavelengths < original / high, frequencies, result)


def head_dim(config: Mapping[str, Any]) -> int:
    """The head dimension a draft config names or implies."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def mlp(x: Tensor, weights: Weights, name: str, step: int, tap: Tap) -> Tensor:
    """The gated SiLU MLP."""
    gate, up = linear(x, weights, f"{name}.gate_proj"), linear(x, weights, f"{name}.up_proj")
    tap(f"{name}.gate_proj", step, x, gate)
    tap(f"{name}.up_proj", step, x, up)
    gated = torch.nn.functional.silu(gate) * up
    out = linear(gated, weights, f"{name}.down_proj")
    tap(f"{name}.down_proj", step, gated, out)
    tap(name, step, x, out)
    return out
