"""From whatever names a draft to Speculators' ``Eagle3SpeculatorConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speculators.models.eagle3 import Eagle3SpeculatorConfig

from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.draft_config import attach, is_native, native_config, prototype_layer, read_config_dict
from ports.training.online import NUM_FEATURES, aux_layer_ids
from ports.verifier.config import verifier_config

OTHER_NORMS = ("norm_before_fc", "fc_norm", "norm_output")
"""What Speculators can compute and the prototype does not."""


def load_draft_config(
    configpath: str,
    basepath: str,
    ttt_steps: int,
    alignment: Alignment = Alignment.PROTOTYPE,
    recorded_layers: Sequence[int] | None = None,
) -> Eagle3SpeculatorConfig:
    """The draft's config, attached to the verifier; other arguments and errors are those of ``draft_config.attach``.

    Args:
        configpath: the prototype's draft JSON, a Speculators config or checkpoint directory, or a hub id.
        recorded_layers: where the records say their features come from; taken over by a config that names no layers.

    Raises:
        InputError: unreadable file, unknown key or value, another kind of speculator or of layer.
    """
    source = read_config_dict(configpath)
    config = _native(configpath, source) if is_native(source) else _from_prototype(configpath, source)
    attach(configpath, config, basepath, ttt_steps, alignment)
    verifier = verifier_config(basepath)
    if not 0 < config.draft_vocab_size <= verifier.vocab_size:
        raise InputError(configpath, "draft_vocab_size", config.draft_vocab_size, f"1..{verifier.vocab_size}")
    depth = verifier.num_hidden_layers
    layers = list(config.eagle_aux_hidden_state_layer_ids or recorded_layers or aux_layer_ids(basepath, depth))
    if not all(0 <= layer <= depth for layer in layers):
        expected = f"layers of the verifier, which has {depth}"
        raise InputError(configpath, "eagle_aux_hidden_state_layer_ids", layers, expected)
    config.eagle_aux_hidden_state_layer_ids = layers
    return config


def _native(configpath: str, source: dict[str, Any]) -> Eagle3SpeculatorConfig:
    config: Eagle3SpeculatorConfig = native_config(configpath, source, "eagle3")
    if not config.norm_before_residual or any(getattr(config, name) for name in OTHER_NORMS):
        found = {name: getattr(config, name) for name in ("norm_before_residual", *OTHER_NORMS)}
        raise InputError(configpath, "norms", found, "norm_before_residual alone, as the prototype computes")
    features = config.eagle_aux_hidden_state_layer_ids
    if features is not None and len(features) != NUM_FEATURES:
        raise InputError(configpath, "eagle_aux_hidden_state_layer_ids", features, f"{NUM_FEATURES} layers")
    return config


def _from_prototype(configpath: str, source: dict[str, Any]) -> Eagle3SpeculatorConfig:
    layer = prototype_layer(configpath, source, "eagle3", own_keys=["draft_vocab_size"])
    size = source.get("draft_vocab_size", "nothing")
    if type(size) is not int:
        raise InputError(configpath, "draft_vocab_size", size, "the number of tokens the draft can say")
    return Eagle3SpeculatorConfig(transformer_layer_config=layer, draft_vocab_size=size, norm_before_residual=True)
