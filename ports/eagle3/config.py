"""From whatever names a draft to Speculators' ``Eagle3SpeculatorConfig``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from speculators.config import SpeculatorModelConfig, SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, PretrainedConfig

from ports.errors import InputError
from ports.training.verifier import verifier_config

LEGACY_KEYS = {"rope_theta", "rope_scaling", "torch_dtype", "dtype", "draft_vocab_size", "pretraining_tp"}
FORMAT_KEYS = {"architectures", "transformers_version", "_name_or_path", "auto_map", "model_type", "id2label", "label2id"}


def load_draft_config(configpath: str, basepath: str, ttt_steps: int) -> Eagle3SpeculatorConfig:
    """The draft's config, attached to the verifier at ``basepath``.

    Args:
        configpath: the prototype's draft JSON, a Speculators config or checkpoint directory, or a hub id.
        basepath: verifier directory or hub id.
        ttt_steps: how many tokens the draft proposes when it is served.

    Raises:
        InputError: unreadable file, unknown key, another kind of speculator, or sizes unlike the verifier's.
    """
    source = read_config_dict(configpath)
    if "speculators_model_type" in source:
        config = _native_config(configpath, source)
    else:
        config = _from_prototype(configpath, source)
    config.speculators_config = attach_verifier(basepath, ttt_steps)
    check_against_verifier(configpath, config, verifier_config(basepath))
    if config.eagle_aux_hidden_state_layer_ids is None:
        config.eagle_aux_hidden_state_layer_ids = aux_layer_ids(verifier_config(basepath).num_hidden_layers)
    return config


def read_config_dict(configpath: str) -> dict[str, Any]:
    """The raw JSON object behind a file, a directory with ``config.json``, or a hub id."""
    path = Path(configpath)
    file = path / "config.json" if path.is_dir() else path
    if path.exists():
        try:
            content = json.loads(file.read_text())
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(file, "configpath", str(error), "a readable JSON object") from error
    else:
        try:
            content, _ = PretrainedConfig.get_config_dict(configpath)
        except OSError as error:
            raise InputError(configpath, "configpath", "no such file, directory or hub id", "a draft config") from error
    if not isinstance(content, dict) or not content:
        raise InputError(file, "configpath", type(content).__name__, "a non-empty JSON object")
    return content


def _native_config(configpath: str, source: dict[str, Any]) -> Eagle3SpeculatorConfig:
    kind = source["speculators_model_type"]
    if kind != "eagle3":
        raise InputError(configpath, "speculators_model_type", kind, "eagle3")
    config = SpeculatorModelConfig.from_dict(source)
    if not isinstance(config, Eagle3SpeculatorConfig):
        raise InputError(configpath, "speculators_model_type", type(config).__name__, "Eagle3SpeculatorConfig")
    if not config.norm_before_residual or config.norm_before_fc or config.fc_norm or config.norm_output:
        found = {name: getattr(config, name) for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
        raise InputError(configpath, "norms", found, "norm_before_residual alone, as the prototype computes")
    return config


def _from_prototype(configpath: str, source: dict[str, Any]) -> Eagle3SpeculatorConfig:
    known = set(LlamaConfig().to_dict()) | LEGACY_KEYS | FORMAT_KEYS
    unknown = sorted(set(source) - known)
    if unknown:
        raise InputError(configpath, unknown[0], "an unknown key", "keys of a Llama config and draft_vocab_size")
    if source.get("model_type", "llama") != "llama":
        raise InputError(configpath, "model_type", source["model_type"], "llama")
    if "draft_vocab_size" not in source:
        raise InputError(configpath, "draft_vocab_size", "missing", "the number of tokens the draft can say")
    layer = {key: value for key, value in source.items() if key not in {"draft_vocab_size", *FORMAT_KEYS}}
    return Eagle3SpeculatorConfig(
        transformer_layer_config=LlamaConfig.from_dict(layer),
        draft_vocab_size=source["draft_vocab_size"],
        norm_before_residual=True,
    )


def attach_verifier(basepath: str, ttt_steps: int) -> SpeculatorsConfig:
    """What Speculators needs to know to propose tokens and to find the verifier again."""
    return SpeculatorsConfig(
        algorithm="eagle3",
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=ttt_steps)],
        default_proposal_method="greedy",
        verifier=VerifierConfig.from_pretrained(basepath),
    )


def check_against_verifier(configpath: str, config: Eagle3SpeculatorConfig, verifier: Any) -> None:
    """Sizes that must be the verifier's, and what this port cannot train."""
    layer = config.transformer_layer_config
    for name in ("hidden_size", "vocab_size"):
        if getattr(layer, name) != getattr(verifier, name):
            raise InputError(configpath, name, getattr(layer, name), f"{getattr(verifier, name)}, the verifier's")
    if not 0 < config.draft_vocab_size <= verifier.vocab_size:
        raise InputError(configpath, "draft_vocab_size", config.draft_vocab_size, f"1..{verifier.vocab_size}")
    if layer.attention_dropout:
        raise InputError(configpath, "attention_dropout", layer.attention_dropout, "0.0: TTT attention has no dropout")
    if layer.num_attention_heads % layer.num_key_value_heads:
        found = f"{layer.num_attention_heads} heads, {layer.num_key_value_heads} key/value heads"
        raise InputError(configpath, "num_key_value_heads", found, "a divisor of num_attention_heads")


def aux_layer_ids(num_layers: int) -> list[int]:
    """The verifier layers whose outputs are the features: 2, n // 2 and n - 3, as the prototype's data holds them.

    Speculators refuses repeated ids, and the rule repeats them for verifiers of 4 to 6 layers; the config then names
    three neighbouring distinct layers and a warning says so.
    """
    ids = [2, num_layers // 2, num_layers - 3]
    if len(set(ids)) == 3 and min(ids) >= 0:
        return ids
    distinct = _distinct(ids, num_layers)
    warnings.warn(
        f"a verifier of {num_layers} layers gives feature layers {ids}, which Speculators cannot record; "
        f"the checkpoint says {distinct}: set eagle_aux_hidden_state_layer_ids if it is to be served",
        stacklevel=2,
    )
    return distinct


def _distinct(ids: list[int], num_layers: int) -> list[int]:
    taken: list[int] = []
    for wanted in ids:
        free = [layer for layer in range(num_layers + 1) if layer not in taken]
        taken.append(min(free, key=lambda layer: abs(layer - wanted)))
    return taken
