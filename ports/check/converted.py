"""Step ``converted``: a draft that a converter wrote, beside the EAGLE-3 checkpoint that it was made from.

EAGLE and SpecForge have the draft's layer as ``midlayer``, and no embedding where it is the verifier's. What such a
draft computes follows from its names: norms of token and state side by side enter the layer, the residual is the state
from before its norm, a norm stands before the head, and the layer's own output is the next state.

T tokens, h hidden size, D the draft's vocabulary, k steps.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from ports.check.findings import Finding, fault
from ports.check.trained import compared
from ports.errors import InputError, reason
from ports.files import read_json
from ports.training.alignment import Alignment
from ports.training.checkpoint import WEIGHTS
from ports.training.data import collate, make_sample
from ports.training.saving import read_tensors, read_weights

LENGTH = 24
"""Tokens that both forwards read; they and their features are drawn."""

SAID = ("rope_parameters", "rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")
"""Entries of a layer's config that its forward depends on, and that shapes do not tell."""

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
    others = {"the original's": original_logits(layer, draft.state_dict(), batch, size)}
    return compared(
        "converted", draft, batch, size, others, f"what is converted computes otherwise: {_said(model, layer)}"
    )


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


def original_logits(
    config: LlamaConfig, held: Mapping[str, Tensor], batch: Mapping[str, Any], size: int
) -> list[Tensor]:
    """[T, D] of every step as EAGLE computes them; of those after the first for the last chain alone, NaN elsewhere."""
    ids, state = batch["input_ids"][0], F.linear(batch["features"][0], held["fc.weight"])
    start = len(ids) - 1 - size
    out = _layer(config, held, ids, state)
    rows, state = [_head(config, held, out)], torch.cat([state[: start + 1], out[start : start + 1]])
    for step in range(1, size):
        out = _layer(config, held, ids[: start + step + 1], state)
        rows.append(torch.full_like(rows[0], torch.nan))
        rows[-1][start + step] = _head(config, held, out[-1])
        state = torch.cat([state, out[-1:]])
    return rows


def _head(config: LlamaConfig, held: Mapping[str, Tensor], out: Tensor) -> Tensor:
    return F.linear(_normed(config, held, "norm", out), held["lm_head.weight"])


def _normed(config: LlamaConfig, held: Mapping[str, Tensor], name: str, value: Tensor) -> Tensor:
    return F.rms_norm(value, value.shape[-1:], held[f"{name}.weight"], config.rms_norm_eps)


def _layer(config: LlamaConfig, held: Mapping[str, Tensor], ids: Tensor, state: Tensor) -> Tensor:
    """The next states [T, h] from ids [T] and states [T, h]."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, held[f"layers.0.{name}.weight"], held.get(f"layers.0.{name}.bias"))

    def heads(name: str) -> Tensor:
        return linear(f"self_attn.{name}", both).unflatten(-1, (-1, config.head_dim)).transpose(0, 1)[None]

    embeds = F.embedding(ids, held["embed_tokens.weight"])
    parts = {"input_layernorm": embeds, "hidden_norm": state}
    both = torch.cat([_normed(config, held, f"layers.0.{name}", value) for name, value in parts.items()], -1)
    turn = LlamaRotaryEmbedding(config)(both, torch.arange(len(ids))[None])
    query, key = apply_rotary_pos_emb(heads("q_proj"), heads("k_proj"), *turn)
    mixed = F.scaled_dot_product_attention(query, key, heads("v_proj"), is_causal=True, enable_gqa=True)
    state = state + linear("self_attn.o_proj", mixed[0].transpose(0, 1).flatten(1))
    normed = _normed(config, held, "layers.0.post_attention_layernorm", state)
    gated = ACT2FN[config.hidden_act](linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
    return state + linear("mlp.down_proj", gated)


def _said(model: Any, original: LlamaConfig) -> str:
    """What the two configs say otherwise."""
    layer = model.config.transformer_layer_config
    found = [f"{name} {getattr(layer, name)}, the original's {getattr(original, name)}" for name in SAID]
    found = [told for name, told in zip(SAID, found) if getattr(layer, name) != getattr(original, name)]
    switches = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return "; ".join([*found, *(f"{name} True" for name in switches if getattr(model.config, name, False))])
