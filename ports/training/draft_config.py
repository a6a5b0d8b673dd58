"""What every port needs to read a draft's config, check every value of it and attach it to its verifier."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from speculators import SpeculatorModel
from speculators.config import SpeculatorModelConfig, SpeculatorsConfig, VerifierConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from ports.errors import InputError, reason
from ports.files import read_json
from ports.training.alignment import Alignment
from ports.training.derived import divisors_up_to
from ports.verifier.config import hub_id, verifier_config
from ports.verifier.tokenizer import SPECIAL_IDS, special_ids

LAYER_CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
"""By ``model_type``: the layers that drafts are made of."""

DRAFT_LAYERS = {"eagle3": ("llama", "qwen3")}
"""Which of them, by algorithm; others have Llama's. Speculators' Eagle3 has a first layer for each of the two."""

LEGACY_KEYS = frozenset({"rope_theta", "rope_scaling", "torch_dtype", "dtype", "pretraining_tp"})
FORMAT_KEYS = frozenset(
    {"architectures", "transformers_version", "_name_or_path", "auto_map", "model_type", "id2label", "label2id"}
)
SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim"),
)


def read_config_dict(configpath: str) -> dict[str, Any]:
    """The raw JSON object behind a file, a directory with ``config.json``, or a hub id.

    Raises:
        InputError: no such file, not JSON, or not an object.
    """
    path = Path(configpath)
    file = path / "config.json" if path.is_dir() else path
    content = read_json(file, "draft_config", "a readable JSON object") if path.exists() else _fetch(configpath)
    if not isinstance(content, dict) or not content:
        raise InputError(file, "draft_config", type(content).__name__, "a non-empty JSON object")
    return content


def _fetch(hub_id: str) -> Any:
    try:
        return PretrainedConfig.get_config_dict(hub_id)[0]
    except OSError as error:
        raise InputError(hub_id, "draft_config", "no such file, directory or hub id", "a draft config") from error


def is_native(source: dict[str, Any]) -> bool:
    """Is this a Speculators config, rather than a prototype's draft JSON?"""
    return "speculators_model_type" in source


def native_config(configpath: str, source: dict[str, Any], algorithm: str) -> Any:
    """The Speculators config of type ``algorithm`` that ``source`` describes.

    Raises:
        InputError: another type, a layer that drafts of it cannot have, or values that Speculators refuses.
    """
    if source["speculators_model_type"] != algorithm:
        raise InputError(configpath, "speculators_model_type", source["speculators_model_type"], algorithm)
    layer = source.get("transformer_layer_config")
    if isinstance(layer, dict) and "model_type" in layer:
        _check_layer(configpath, "transformer_layer_config.model_type", layer["model_type"], algorithm)
    try:
        return SpeculatorModelConfig.from_dict(source)
    except Exception as error:  # pydantic's, transformers' and Speculators' own errors
        raise InputError(configpath, "config", reason(error), f"a Speculators {algorithm} config") from error


def prototype_layer(
    configpath: str, source: dict[str, Any], algorithm: str, own_keys: Sequence[str] = ()
) -> PretrainedConfig:
    """The decoder layer's config from a prototype's draft JSON; without a ``model_type`` it is Llama's.

    Args:
        configpath: named in errors.
        source: the JSON object.
        algorithm: whose draft it is.
        own_keys: the port's, no part of the layer.

    Raises:
        InputError: another kind of layer, a key that no such config has, or values that transformers refuses.
    """
    kind = source.get("model_type", "llama")
    _check_layer(configpath, "model_type", kind, algorithm)
    unknown = sorted(set(source) - set(LAYER_CONFIGS[kind]().to_dict()) - LEGACY_KEYS - FORMAT_KEYS - set(own_keys))
    if unknown:
        expected = " and ".join([f"keys of a {kind} config", *own_keys])
        raise InputError(configpath, unknown[0], "an unknown key", expected)
    values = {key: value for key, value in source.items() if key not in FORMAT_KEYS | set(own_keys)}
    _check_heads(configpath, {**LAYER_CONFIGS[kind]().to_dict(), **values})
    values = {**dict.fromkeys(SPECIAL_IDS), **values}  # what is not said is the verifier's, not Llama's
    try:
        return LAYER_CONFIGS[kind].from_dict(values)
    except Exception as error:  # what transformers raises here differs from release to release
        raise InputError(configpath, "config", reason(error), f"values of a {kind} config") from error


def _check_heads(configpath: str, values: dict[str, Any]) -> None:
    """Refuse (InputError) what transformers' layers refuse without saying what would do."""
    size, heads = values["hidden_size"], values["num_attention_heads"]
    if type(size) is int and type(heads) is int and size > 0 < heads and size % heads:
        fits = divisors_up_to(size, heads)[0]
        expected = f"a divisor of hidden_size {size}, as Llama layers have it beside a head_dim too: {fits}, for one"
        raise InputError(configpath, "num_attention_heads", heads, expected)


def _check_layer(configpath: str, field: str, kind: Any, algorithm: str) -> None:
    """Speculators reads the config of other layers, too, and has no draft for them."""
    kinds = DRAFT_LAYERS.get(algorithm, ("llama",))
    if kind not in kinds:
        expected = f"{' or '.join(kinds)}: Speculators holds no such draft of other layers; its verifier may have any"
        raise InputError(configpath, field, kind, expected)


def load_layer(configpath: str, algorithm: str) -> PretrainedConfig:
    """The decoder layer's config of a draft of that algorithm, from a draft JSON, a Speculators config or a hub id.

    Raises:
        InputError: see :func:`read_config_dict`, :func:`native_config` and :func:`prototype_layer`.
    """
    source = read_config_dict(configpath)
    if not is_native(source):
        return prototype_layer(configpath, source, algorithm)
    return native_config(configpath, source, algorithm).transformer_layer_config


def attach(configpath: str, config: Any, basepath: str, ttt_steps: int, alignment: Alignment) -> Any:
    """A draft's ``config``, checked in every value and attached to its verifier.

    Args:
        configpath: named in errors.
        config: a Speculators config of any algorithm.
        basepath: verifier directory or hub id.
        ttt_steps: how many tokens the draft proposes when it is served.
        alignment: how the draft will be trained.

    Raises:
        InputError: sizes unlike the verifier's, layers that TTT attention or this alignment is not defined for, or
            values that no draft can be built of.
    """
    check_sizes(configpath, config.transformer_layer_config, verifier_config(basepath))
    for name, value in special_ids(basepath).items():
        if getattr(config.transformer_layer_config, name) is None:
            setattr(config.transformer_layer_config, name, value)
    _check_trainable(configpath, config.transformer_layer_config, alignment)
    check_builds(configpath, SpeculatorModel.registered_model_class_from_config(config), config)
    config.speculators_config = attach_verifier(config.speculators_model_type, basepath, ttt_steps)
    return config


def attach_verifier(algorithm: str, basepath: str, ttt_steps: int) -> SpeculatorsConfig:
    """What Speculators needs to know to propose ``ttt_steps`` tokens and to find the verifier again, from anywhere."""
    place = Path(basepath)
    verifier = VerifierConfig.from_pretrained(str(place.resolve()) if place.is_dir() else basepath)
    verifier.name_or_path = id_of_newest(place) or verifier.name_or_path
    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=ttt_steps)],
        default_proposal_method="greedy",
        verifier=verifier,
    )


def id_of_newest(directory: Path) -> str | None:
    """The hub id of what lies in the hub's cache, as far as it is what the id stands for there."""
    place = directory.resolve()
    model = place.parent.parent
    main = model / "refs" / "main"
    if model.parent != Path(constants.HF_HUB_CACHE).resolve() or not main.is_file():
        return None
    return hub_id(str(place)) if main.read_text().strip() == place.name else None


def check_sizes(configpath: str, layer: Any, verifier: Any) -> None:
    """Refuse (InputError) sizes that are none, or must be the verifier's and are not; warn of fewer positions."""
    for name in SIZES:
        value = getattr(layer, name, 1)
        if type(value) is not int or value < 1:
            raise InputError(configpath, name, repr(value), "a positive integer")
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


def _check_trainable(configpath: str, layer: Any, alignment: Alignment) -> None:
    if layer.num_hidden_layers > 1 and alignment is Alignment.PROTOTYPE:
        expected = "1: the prototype's alignment is defined for one layer; --ttt-alignment chain takes more"
        raise InputError(configpath, "num_hidden_layers", layer.num_hidden_layers, expected)
    if "sliding_attention" in (getattr(layer, "layer_types", None) or []):
        raise InputError(configpath, "layer_types", "sliding_attention", "full_attention: TTT attention has no window")
    if layer.attention_dropout:
        raise InputError(configpath, "attention_dropout", layer.attention_dropout, "0.0: TTT attention has no dropout")
    if layer.head_dim % 2:
        raise InputError(configpath, "head_dim", layer.head_dim, "an even number, for rotary embeddings")
    if layer.num_attention_heads % layer.num_key_value_heads:
        found = f"{layer.num_attention_heads} heads, {layer.num_key_value_heads} key/value heads"
        raise InputError(configpath, "num_key_value_heads", found, "a divisor of num_attention_heads")
