"""Step ``converted``: a draft that a converter wrote, beside the EAGLE-3 checkpoint that it was made from.

EAGLE and SpecForge have the draft's layer as ``midlayer``, and no embedding where it is the verifier's. What such a
draft computes is what training here computes with the original's own config, and none of what Speculators can switch.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from ports.check.findings import Finding, fault
from ports.check.trained import chain_logits, compared
from ports.errors import InputError, reason
from ports.evaluate.drafter import untrained
from ports.files import read_json
from ports.training.alignment import Alignment
from ports.training.checkpoint import WEIGHTS
from ports.training.data import collate, make_sample
from ports.training.saving import read_tensors, read_weights

LENGTH = 24
"""Tokens that both forwards read; they and their features are drawn."""

SAID = ("rope_parameters", "rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
"""Entries of a layer's config that its forward depends on, and that shapes do not tell."""

SWITCHES = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""Of Speculators, which EAGLE's drafts have not."""

AGAIN = "convert it again, by a converter that takes every tensor and says what it does not"


def look_at_conversion(model: Any, directory: Path, original: Path, size: int) -> Finding:
    """Names, values, feature layers and logits of ``model``, opened from ``directory``, against the original's.

    Raises:
        InputError: no EAGLE-3 checkpoint at ``original``.
    """
    config, theirs = read_original(original)
    ours = read_weights(directory / WEIGHTS)
    lost, drawn = sorted({*theirs} - {*ours}), sorted({*ours} - {*theirs} - {"embed_tokens.weight"})
    if lost or drawn:
        told = [f"{', '.join(drawn)}: not in the original, left as drawn"] * bool(drawn)
        told += [f"{', '.join(lost)}: of the original, and dropped"] * bool(lost)
        return fault("converted", "; ".join(told), AGAIN)
    for name, value in theirs.items():
        if value.shape != ours[name].shape or not torch.equal(value.to(ours[name].dtype), ours[name]):
            return fault("converted", f"{name}: not the original's numbers", AGAIN)
    layers = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    taken = model.config.eagle_aux_hidden_state_layer_ids
    if layers is not None and [each + 1 for each in layers] != taken:  # after a layer there, before one here
        advice = f"convert it with eagle_aux_hidden_state_layer_ids {[each + 1 for each in layers]}"
        return fault("converted", f"features of {taken}, the original's of {[each + 1 for each in layers]}", advice)
    draft, batch = copy.deepcopy(model).float().cpu(), drawn_batch(model)
    layer = LlamaConfig.from_dict({key: value for key, value in config.items() if key != "architectures"})
    others = {"the original's": chain_logits(as_said(draft, layer), batch, size)}
    return compared(
        "converted", draft, batch, size, others, f"what is converted computes otherwise: {_said(model, layer)}"
    )


def as_said(draft: Any, layer: LlamaConfig) -> Any:
    """The same weights by the original's own config."""
    said = draft.config.to_dict() | dict.fromkeys(SWITCHES, False)
    said["transformer_layer_config"] |= {name: getattr(layer, name) for name in SAID}
    like = SimpleNamespace(config=type(draft.config).from_dict(said), t2d=draft.t2d, d2t=draft.d2t)
    made = untrained(like).float()
    made.load_state_dict(draft.state_dict())
    return made


def read_original(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of an EAGLE-3 checkpoint, and its tensors by Speculators' names.

    Raises:
        InputError: not one.
    """
    expected = "an EAGLE-3 checkpoint: config.json, and model.safetensors or pytorch_model.bin"
    config, file = read_json(directory / "config.json", "--converted-from", expected), directory / WEIGHTS
    if file.is_file():
        held = read_tensors(file, "--converted-from", expected)
    else:
        file = directory / "pytorch_model.bin"
        try:
            held = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(file, "--converted-from", reason(error), expected) from error
    if not isinstance(config, dict) or not any(name.startswith("midlayer.") for name in held):
        raise InputError(file, "--converted-from", f"no midlayer among {len(held)} tensors", expected)
    return config, {name.replace("midlayer.", "layers.0.", 1): value for name, value in held.items()}


def drawn_batch(model: Any) -> dict[str, Any]:
    """One sample of drawn ids, features and targets."""
    layer, generator = model.config.transformer_layer_config, torch.Generator().manual_seed(0)
    ids = torch.randint(layer.vocab_size, (LENGTH,), generator=generator)
    features, target = (
        torch.randn(LENGTH, width, generator=generator) for width in (model.fc.in_features, layer.hidden_size)
    )
    record = {"input_ids": ids, "hidden_state": features, "target": target, "loss_mask": torch.ones_like(ids)}
    return collate([make_sample(record, LENGTH, Alignment.CHAIN)])


def _said(model: Any, original: LlamaConfig) -> str:
    """What the two configs say otherwise."""
    layer = model.config.transformer_layer_config
    found = [f"{name} {getattr(layer, name)}, the original's {getattr(original, name)}" for name in SAID]
    found = [told for name, told in zip(SAID, found) if getattr(layer, name) != getattr(original, name)]
    return "; ".join([*found, *(f"{name} True" for name in SWITCHES if getattr(model.config, name, False))])
