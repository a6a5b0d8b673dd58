"""From sample files to batches, in the prototypes' order of operations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from parity.errors import InputError
from parity.files import read_sample

MAX_LEN = 8192


def load_sample(file: Path, uniforms: Tensor | None) -> dict[str, Tensor]:
    """One sample: ids and target shifted left with a zero at the end, the mask's last entry off, noise on the features.

    Args:
        uniforms: [1, T, F] in [0, 1), or None for no noise.
    """
    raw = read_sample(file, ("input_ids", "loss_mask", "hidden_state"))
    ids, mask = raw["input_ids"][:MAX_LEN], raw["loss_mask"][:MAX_LEN].clone()
    features = raw["hidden_state"][:MAX_LEN]
    target = raw.get("target", raw["hidden_state"])[:MAX_LEN]
    if uniforms is not None:
        if uniforms.shape != (1, *features.shape):
            raise InputError(file, "noise", f"draws of shape {tuple(uniforms.shape)}", (1, *features.shape))
        features = features + (uniforms[0] - 0.5) * 0.2 * 512 / len(features)
    mask[-1] = 0
    return {
        "input_ids": torch.cat([ids[1:], ids.new_zeros(1)]),
        "hidden_states": features,
        "target": torch.cat([target[1:], torch.zeros(1, target.shape[1])]),
        "attention_mask": torch.ones_like(ids),
        "loss_mask": mask.long(),
    }


def make_batch(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad on the right with zeros; floating tensors become float32."""
    length = max(len(sample["input_ids"]) for sample in samples)
    return {name: torch.stack([_padded(sample[name], length) for sample in samples]) for name in samples[0]}


def _padded(values: Tensor, length: int) -> Tensor:
    values = values.float() if values.is_floating_point() else values
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])
