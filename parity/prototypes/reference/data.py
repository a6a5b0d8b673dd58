"""From sample files to batches, in the prototypes' order of operations and in the order a run loaded them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parity.files import read_sample
from parity.prototypes.case import RecordedCase
from parity.prototypes.recorded import recorded_noise

MAX_LEN = 8192


def batches_of(case: RecordedCase) -> Iterator[dict[str, Tensor]]:
    """The batches of a run, whole ones, in the recorded order and with the recorded noise.

    Raises:
        InputError: a sample that is missing or damaged, or draws of noise that are too few or of another shape.
    """
    draw = recorded_noise(case.uniforms) if case.uniforms else None
    files = (case.tmpdir / case.meta.samples_files[index] for index in case.order)
    while batch := list(islice(files, case.bs)):
        yield make_batch([load_sample(file, draw) for file in batch])


def load_sample(file: Path, draw: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
    """One sample: ids and target shifted left with a zero at the end, the mask's last entry off, noise on the features.

    Args:
        draw: gives numbers in [0, 1) like features [1, T, F]; None for no noise.
    """
    raw = read_sample(file, ("input_ids", "loss_mask", "hidden_state"))
    ids, mask = raw["input_ids"][:MAX_LEN], raw["loss_mask"][:MAX_LEN].clone()
    features = raw["hidden_state"][:MAX_LEN]
    target = raw.get("target", raw["hidden_state"])[:MAX_LEN]
    if draw is not None:
        features = features + (draw(features[None])[0] - 0.5) * 0.2 * 512 / len(features)
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
