"""What vLLM calls at its start: it learns to read HASS checkpoints and which model runs them.

vLLM's method for such drafts is "eagle" (EAGLE-1): the draft reads the verifier's last hidden state after its final
norm and speaks through the verifier's head.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import LlamaConfig

from ports.errors import reason

ARCHITECTURE = "EagleHassForCausalLM"
"""vLLM takes the names of EAGLE models as they are only if they start with Eagle."""

MODEL = f"ports.serving.vllm_hass:{ARCHITECTURE}"


def register() -> None:
    """Tell vLLM of the model, by name, and of the config of ``hass`` checkpoints; may be called again.

    vLLM calls this in every server of its environment: where its insides are others, a line says that HASS is not there
    and why, and nothing else is touched.
    """
    try:
        from vllm import ModelRegistry
        from vllm.transformers_utils.configs.speculators.algos import register_speculator

        if ARCHITECTURE not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(ARCHITECTURE, MODEL)
        register_speculator("hass")(describe)
    except Exception as error:  # a module that moved, a registry of another kind
        warning = "HASS drafts cannot be served by this release of vLLM, everything else can: %s"
        logging.getLogger(__name__).warning(warning, reason(error))


def describe(config_dict: dict[str, Any], pre_trained_config: dict[str, Any]) -> None:
    """Complete the layer's config in place, as vLLM reads it.

    Args:
        config_dict: a HASS checkpoint's ``config.json``.
        pre_trained_config: its ``transformer_layer_config``, in which transformers' defaults may be left out.
    """
    layer = LlamaConfig.from_dict(pre_trained_config)
    pre_trained_config.update(served_config(layer, folded=False))


def served_config(layer: LlamaConfig, folded: bool, draft_vocab_size: int | None = None) -> dict[str, Any]:
    """The config of a HASS draft in vLLM: a Llama config, the model's name, whether its embedding is folded, and how
    many tokens it proposes from; None: all of the verifier's, by whose head."""
    size = draft_vocab_size or layer.vocab_size
    names = {"architectures": [ARCHITECTURE], "draft_vocab_size": size, "folded_embedding": folded}
    return {**layer.to_dict(), **names}
