"""Write a HASS draft with its embedding folded, as vLLM's plugin reads it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ports.hass import HassDraftModel
from ports.serving.fold import fold
from ports.serving.plugin import served_config
from ports.training.checkpoint import write_directory


def folded_weights(draft: HassDraftModel) -> dict[str, Tensor]:
    """The checkpoint's tensors without the token's norm, with ``embed_tokens`` [V, h] and the folded ``fc``."""
    weights = {name: value.detach() for name, value in draft.state_dict().items()}
    norm, eps = weights.pop("embed_layernorm.weight"), draft.config.transformer_layer_config.rms_norm_eps
    table, fc = fold(weights["embed_tokens.weight"], norm, eps, weights["fc.weight"])
    del weights["lm_head.weight"]  # the verifier's
    return {**weights, "embed_tokens.weight": table, "fc.weight": fc}


def write_folded(draft: HassDraftModel, directory: Path) -> Path:
    """Write ``config.json`` and ``model.safetensors`` at ``directory``, whole or not at all.

    Raises:
        InputError: it could not be written.
    """
    return write_directory(directory, lambda folder: _fill(draft, folder))


def _fill(draft: HassDraftModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    config = served_config(draft.config.transformer_layer_config, folded=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {name: value.contiguous() for name, value in folded_weights(draft).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
