"""Speculators' parameter names and the other originals' names for the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from parity.errors import InputError

OWN = {"eagle": (), "hass": ("fc.bias",)}
"""Parameters that only the other original has, by its name; they start as zeros."""

LACKING = {"eagle": (), "hass": ("embed_layernorm.weight", "hidden_layernorm.weight", "lm_head_layernorm.weight")}
"""Parameters of the prototype, by Speculators' name, that the other original has not."""

_LAYER = ("layers.0.", "midlayer.")


def to_other(original: str, name: str) -> str:
    """The original's name of a Speculators parameter."""
    return name.replace(_LAYER[0], _LAYER[1], 1) if original == "eagle" else name


def to_native(original: str, name: str) -> str:
    """Speculators' name of one of the original's parameters."""
    return name.replace(_LAYER[1], _LAYER[0], 1) if original == "eagle" else name


def give_weights(original: str, model: nn.Module, shared: Mapping[str, Tensor], file: Path) -> None:
    """Copy the shared weights, by Speculators' names, over the draft's parameters; each side must be covered.

    Raises:
        InputError: a weight without a place, a trained parameter without a weight, or another shape.
    """
    own = {name: value for name, value in model.named_parameters() if not name.startswith("target_model.")}
    given = {to_other(original, name): value for name, value in shared.items() if name not in LACKING[original]}
    missing = {name for name, value in own.items() if value.requires_grad} - set(given) - set(OWN[original])
    unknown = set(given) - set(own)
    if missing or unknown:
        raise InputError(file, "init.*", f"unknown {sorted(unknown)}, missing {sorted(missing)}", "the draft's weights")
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise InputError(file, f"init.{name}", tuple(value.shape), tuple(own[name].shape))
    with torch.no_grad():
        for name, value in {**{name: torch.zeros_like(own[name]) for name in OWN[original]}, **given}.items():
            own[name].copy_(value)


def gradients(original: str, model: nn.Module) -> dict[str, Tensor]:
    """Gradients by Speculators' names."""
    named = model.named_parameters()
    return {to_native(original, name): value.grad.detach().clone() for name, value in named if value.grad is not None}
