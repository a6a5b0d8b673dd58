"""The first batch of a case as raw samples: nothing shifted, nothing masked, nothing padded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from parity.errors import InputError
from parity.files import read_sample
from parity.prototypes.case import Case


def first_files(case: Case) -> list[Path]:
    """The sample files of the first batch."""
    return [case.tmpdir / case.meta.samples_files[index] for index in case.order[: case.bs]]


def first_samples(case: Case) -> list[dict[str, Tensor]]:
    """``input_ids`` and ``loss_mask`` [T], ``hidden_state`` [T, F] and, for Eagle3, ``target`` [T, h]."""
    names = ["input_ids", "loss_mask", "hidden_state", *(["target"] if case.algorithm == "eagle3" else [])]
    return [read_sample(file, names) for file in first_files(case)]


def padded(samples: list[dict[str, Tensor]], name: str) -> Tensor:
    """One tensor [B, T, ...], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True)


def require_plain(case: Case) -> None:
    """Refuse (InputError) a case that the other originals cannot be given: noise of its own, or half precision."""
    if case.noise or case.shuffle or case.dtype != "fp32":
        found = f"noise {case.noise}, shuffle {case.shuffle}, {case.dtype}"
        raise InputError(case.directory, "case", found, "float32 without noise and shuffling")
