"""A draft layer's config from plain JSON values, each of them checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ports.errors import InputError, reason

LAYER_CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
"""By ``model_type``: the layers that drafts are made of."""

DRAFT_LAYERS = {"eagle3": ("llama", "qwen3"), "hass": ("llama",)}
"""Which of them by algorithm: Speculators' Eagle3 has a first layer for each of its two, HASS is defined for one."""

OTHER_LAYERS = ("llama",)
"""Those of an algorithm that is not one of the shipped ports."""

SIZES = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "draft_vocab_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def layer_config(file: str, values: Mapping[str, Any], kind: str = "llama") -> PretrainedConfig:
    """The config of a ``kind`` of layer that ``values`` describe; ``file`` is named in errors.

    Raises:
        InputError: a size that is no positive integer, an activation or rotary embedding that transformers does not
            know, or anything else that transformers refuses.
    """
    _check_sizes(file, values)
    _check_head_dim(file, values)
    _check_padding_id(file, values)
    _check_choice(file, "hidden_act", values.get("hidden_act", "silu"), list(ACT2FN))
    _check_choice(file, "rope_scaling", _rope_type(values), ["default", *ROPE_INIT_FUNCTIONS])
    try:
        return LAYER_CONFIGS[kind].from_dict(dict(values))
    except Exception as error:  # what transformers raises here differs from release to release
        raise InputError(file, "config", reason(error), f"values of a {kind} config") from error


def _check_sizes(file: str, values: Mapping[str, Any]) -> None:
    for name in SIZES:
        value = values.get(name)
        if name in values and value is not None and (type(value) is not int or value < 1):
            raise InputError(file, name, repr(value), "a positive integer")


def _check_head_dim(file: str, values: Mapping[str, Any]) -> None:
    """Older transformers take an odd one and fail when rotary embeddings halve it."""
    found = values.get("head_dim")
    if found is not None and found % 2:
        raise InputError(file, "head_dim", found, "an even number, for rotary embeddings")


def _check_padding_id(file: str, values: Mapping[str, Any]) -> None:
    found, size = values.get("pad_token_id"), values.get("vocab_size") or 32000
    if found is not None and (type(found) is not int or not 0 <= found < size):
        raise InputError(file, "pad_token_id", repr(found), f"null or an id in [0, {size})")


def _rope_type(values: Mapping[str, Any]) -> Any:
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        return scaling
    return scaling.get("rope_type", scaling.get("type", "default"))


def _check_choice(file: str, name: str, value: Any, known: list[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InputError(file, name, repr(value), f"one of {', '.join(known)}")
