"""What every port needs to read a draft's config, check every value of it and attach it to its verifier."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speculators import SpeculatorModel
from speculators.config import SpeculatorModelConfig, SpeculatorsConfig, VerifierConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ports.errors import InputError, reason
from ports.files import read_json
from ports.training.alignment import Alignment

LAYER_CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
"""By ``model_type``: the layers that drafts are made of."""

DRAFT_LAYERS = {"eagle3": ("llama", "qwen3"), "hass": ("llama",)}
"""Which of them by algorithm: Speculators' Eagle3 has a first layer for each of its two, HASS is defined for one."""

OTHER_LAYERS = ("llama",)
"""Those of an algorithm that is not one of the shipped ports."""

LEGACY_KEYS = frozenset({"rope_theta", "rope_scaling", "torch_dtype", "dtype", "pretraining_tp"})
FORMAT_KEYS = frozenset(
    {"architectures", "transformers_version", "_name_or_path", "auto_map", "model_type", "id2label", "label2id"}
)
SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "draft_vocab_size", "max_position_embeddings"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim"),
)


def read_config_dict(configpath: str) -> dict[str, Any]:
    """The raw JSON object behind a file, a directory with ``config.json``, or a hub id.

    Raises:
        InputError: no such file, not JSON, or not an object.
    """
    path = Path(configpath)
    file = path / "config.json" if path.is_dir() else path
    content = read_json(file, "configpath", "a readable JSON object") if path.exists() else _fetch(configpath)
    if not isinstance(content, dict) or not content:
        raise InputError(file, "configpath", type(content).__name__, "a non-empty JSON object")
    return content


def _fetch(hub_id: str) -> Any:
    try:
        return PretrainedConfig.get_config_dict(hub_id)[0]
    except OSError as error:
        raise InputError(hub_id, "configpath", "no such file, directory or hub id", "a draft config") from error


def is_native(source: dict[str, Any]) -> bool:
    """Is this a Speculators config, rather than a prototype's draft JSON?"""
    return "speculators_model_type" in source


def native_config(configpath: str, source: dict[str, Any], kind: str) -> Any:
    """The Speculators config of type ``kind`` that ``source`` describes.

    Raises:
        InputError: another type, a layer that drafts of it cannot have, or values that Speculators refuses.
    """
    if source["speculators_model_type"] != kind:
        raise InputError(configpath, "speculators_model_type", source["speculators_model_type"], kind)
    layer = source.get("transformer_layer_config")
    if isinstance(layer, dict) and "model_type" in layer:
        layers = DRAFT_LAYERS.get(kind, OTHER_LAYERS)
        check_layer(configpath, "transformer_layer_config.model_type", layer["model_type"], layers)
    try:
        return SpeculatorModelConfig.from_dict(source)
    except Exception as error:  # pydantic's, transformers' and Speculators' own errors
        raise InputError(configpath, "config", reason(error), f"a Speculators {kind} config") from error


def prototype_layer(
    configpath: str, source: dict[str, Any], kinds: Sequence[str], own_keys: Iterable[str] = ()
) -> PretrainedConfig:
    """The decoder layer's config from a prototype's draft JSON.

    Args:
        configpath: named in errors.
        source: the JSON object; without a ``model_type`` its layer is Llama's.
        kinds: layers that the draft can have.
        own_keys: the port's, no part of the layer.

    Raises:
        InputError: a key that no such config has, a value that transformers refuses, or another kind of layer.
    """
    own, kind = set(own_keys), source.get("model_type", "llama")
    check_layer(configpath, "model_type", kind, kinds)
    unknown = sorted(set(source) - set(LAYER_CONFIGS[kind]().to_dict()) - LEGACY_KEYS - FORMAT_KEYS - own)
    if unknown:
        expected = " and ".join([f"keys of a {kind} config", *sorted(own)])
        raise InputError(configpath, unknown[0], "an unknown key", expected)
    return layer_config(configpath, {key: value for key, value in source.items() if key not in FORMAT_KEYS | own}, kind)


def layer_config(file: str, values: Mapping[str, Any], kind: str = "llama") -> PretrainedConfig:
    """The config of a ``kind`` of layer that ``values`` describe; ``file`` is named in errors.

    Raises:
        InputError: a size that is no positive integer, an activation or rotary embedding that transformers does not
            know, or anything else that transformers refuses.
    """
    for field, found, expected in _wrong_values(values):
        raise InputError(file, field, repr(found), expected)
    try:
        return LAYER_CONFIGS[kind].from_dict(dict(values))
    except Exception as error:  # what transformers raises here differs from release to release
        raise InputError(file, "config", reason(error), f"values of a {kind} config") from error


def _wrong_values(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Field, found and expected of what transformers would read and fail on later, in some release."""
    for name in SIZES:
        value = values.get(name)
        if value is not None and (type(value) is not int or value < 1):
            yield name, value, "a positive integer"
    if (values.get("head_dim") or 0) % 2:
        yield "head_dim", values["head_dim"], "an even number, for rotary embeddings"
    padding, vocab_size = values.get("pad_token_id"), values.get("vocab_size") or 32000
    if padding is not None and (type(padding) is not int or not 0 <= padding < vocab_size):
        yield "pad_token_id", padding, f"null or an id in [0, {vocab_size})"
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    chosen = {"hidden_act": values.get("hidden_act", "silu"), "rope_scaling": rope_type}
    known = {"hidden_act": list(ACT2FN), "rope_scaling": ["default", *ROPE_INIT_FUNCTIONS]}
    for name, value in chosen.items():
        if not isinstance(value, str) or value not in known[name]:
            yield name, value, f"one of {', '.join(known[name])}"


def check_layer(configpath: str | Path, field: str, kind: Any, kinds: Sequence[str]) -> None:
    """Refuse (InputError) a layer that Speculators reads the config of and has no draft for."""
    if kind not in kinds:
        expected = f"{' or '.join(kinds)}: Speculators holds no such draft of other layers; its verifier may have any"
        raise InputError(configpath, field, kind, expected)


def load_layer(configpath: str, kind: str) -> PretrainedConfig:
    """The decoder layer's config of a draft of type ``kind``, from a draft JSON, a Speculators config or a hub id.

    Raises:
        InputError: see :func:`read_config_dict`, :func:`native_config` and :func:`prototype_layer`.
    """
    source = read_config_dict(configpath)
    if not is_native(source):
        return prototype_layer(configpath, source, DRAFT_LAYERS.get(kind, OTHER_LAYERS))
    layer: PretrainedConfig = native_config(configpath, source, kind).transformer_layer_config
    return layer


def attach_verifier(algorithm: str, basepath: str, ttt_steps: int) -> SpeculatorsConfig:
    """What Speculators needs to know to propose ``ttt_steps`` tokens and to find the verifier again, from anywhere."""
    place = Path(basepath)
    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=ttt_steps)],
        default_proposal_method="greedy",
        verifier=VerifierConfig.from_pretrained(str(place.resolve()) if place.is_dir() else basepath),
    )


def check_sizes(configpath: str, layer: Any, verifier: Any) -> None:
    """Refuse (InputError) sizes that must be the verifier's and are not; warn of fewer positions than it has."""
    for name in ("hidden_size", "vocab_size"):
        if getattr(layer, name) != getattr(verifier, name):
            raise InputError(configpath, name, getattr(layer, name), f"{getattr(verifier, name)}, the verifier's")
    own, positions = layer.max_position_embeddings, getattr(verifier, "max_position_embeddings", None)
    if positions is not None and own < positions:
        said = f"{configpath}: max_position_embeddings: found {own}, the verifier has {positions}"
        warnings.warn(f"{said}; a server proposes nothing beyond the draft's", stacklevel=2)


def check_builds(configpath: str | Path, model: type[SpeculatorModel], config: SpeculatorModelConfig) -> None:
    """Refuse (InputError) values that are read and that no draft can be made of or saved with; takes no memory."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy.deepcopy(config).save_pretrained(folder)
        config.transformer_layer_config.to_dict()
        with torch.device("meta"):
            model(config)
    except Exception as error:  # whatever the values run into
        raise InputError(configpath, "config", reason(error), "a draft that can be built") from error


def check_trainable(configpath: str, layer: Any, alignment: Alignment) -> None:
    """Refuse (InputError) layers that TTT attention would train wrongly."""
    if layer.num_hidden_layers > 1 and alignment is Alignment.PROTOTYPE:
        expected = "1: the prototype's alignment is defined for one layer; --ttt_alignment chain takes more"
        raise InputError(configpath, "num_hidden_layers", layer.num_hidden_layers, expected)
    if "sliding_attention" in (getattr(layer, "layer_types", None) or []):
        raise InputError(configpath, "layer_types", "sliding_attention", "full_attention: TTT attention has no window")
    if layer.attention_dropout:
        raise InputError(configpath, "attention_dropout", layer.attention_dropout, "0.0: TTT attention has no dropout")
    if layer.num_key_value_heads < 1 or layer.num_attention_heads % layer.num_key_value_heads:
        found = f"{layer.num_attention_heads} heads, {layer.num_key_value_heads} key/value heads"
        raise InputError(configpath, "num_key_value_heads", found, "a divisor of num_attention_heads")
