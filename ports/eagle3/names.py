"""The prototype's parameter names and Speculators' names for the same tensors."""

from __future__ import annotations

RENAMED = {
    "hidden_norm.weight": "layers.0.hidden_norm.weight",
    "input_layernorm.weight": "layers.0.input_layernorm.weight",
    "lm_head_layernorm.weight": "norm.weight",
}
"""Every other parameter keeps its name."""

PROTOTYPE = {native: prototype for prototype, native in RENAMED.items()}


def to_native(name: str) -> str:
    """Speculators' name of a prototype parameter."""
    return RENAMED.get(name, name)


def to_prototype(name: str) -> str:
    """The prototype's name of a Speculators parameter."""
    return PROTOTYPE.get(name, name)
