"""Speculators' Eagle3 draft, trained as the prototype trains its own; and the prototype's names for its parameters."""

RENAMED = {
    "hidden_norm.weight": "layers.0.hidden_norm.weight",
    "input_layernorm.weight": "layers.0.input_layernorm.weight",
    "lm_head_layernorm.weight": "norm.weight",
}
"""Every other parameter has one name in both."""


def to_native(name: str) -> str:
    """Speculators' name of a prototype parameter."""
    return RENAMED.get(name, name)
