"""From sample files to batches, in the prototypes' order of operations and in the order a run loaded them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parity.errors import InputError
from parity.files import read_sample, read_tensors
from parity.prototypes.case import Case
from parity.prototypes.recorded import samples_per_pass

MAX_LEN = 8192


def batches_of_pass(case: Case, epoch: int) -> Iterator[dict[str, Tensor]]:
    """The whole batches of one pass, in the recorded order and with the recorded noise.

    Raises:
        InputError: a sample that is missing or damaged, or too few draws of noise.
    """
    stored = read_tensors(case.uniforms) if case.uniforms else {}
    draws, per_pass = [stored[name] for name in sorted(stored)], samples_per_pass(case)
    for start in range(epoch * per_pass, (epoch + 1) * per_pass, case.bs):
        visits = range(start, start + case.bs)
        if case.uniforms and visits.stop > len(draws):
            raise InputError(case.uniforms, "noise", f"{len(draws)} draws", "one for every sample visited")
        files = [case.tmpdir / case.meta.samples_files[case.order[visit]] for visit in visits]
        uniforms = draws[visits.start : visits.stop] if case.uniforms else [None] * case.bs
        yield make_batch([load_sample(file, draw) for file, draw in zip(files, uniforms)])


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
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    floats = {name: [one.float() if one.is_floating_point() else one for one in each] for name, each in columns.items()}
    return {name: pad_sequence(each, batch_first=True) for name, each in floats.items()}
