"""From a record to a training sample: the shift that pairs a feature with the next token.

Position p holds (token x[p+1], features g[p]) and is trained towards the verifier's distribution after x[p+1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ports.training.alignment import Alignment
from ports.training.data.records import Record


@dataclass
class Sample:
    """One row of a batch: ``input_ids`` and ``loss_mask`` [T] int64, ``features`` [T, F], ``target`` [T, h].

    ``file`` is where it was read from.
    """

    input_ids: Tensor
    features: Tensor
    target: Tensor
    loss_mask: Tensor
    file: str = ""


def make_sample(record: Record, max_len: int, alignment: Alignment) -> Sample:
    """Cut a record to ``max_len`` tokens and shift ids and target one to the left, zero at the end.

    The target is the record's ``target`` (Eagle3) or, without one, its clean ``hidden_state`` (HASS). The loss mask
    stays unshifted with its last entry off (``prototype``), or moves with the ids (``chain``, as Speculators has it).
    """
    cut = {name: value[:max_len] for name, value in record.items()}
    mask = cut["loss_mask"].to(torch.int64)
    if alignment is Alignment.CHAIN:
        mask = _shift(mask)
    return Sample(
        input_ids=_shift(cut["input_ids"]),
        features=cut["hidden_state"],
        target=_shift(cut.get("target", cut["hidden_state"])),
        loss_mask=_last_off(mask),
    )


def _shift(values: Tensor) -> Tensor:
    """``values[p+1]`` at p, zero at the last position."""
    return torch.cat([values[1:], torch.zeros_like(values[:1])])


def _last_off(mask: Tensor) -> Tensor:
    mask = mask.clone()
    mask[-1] = 0
    return mask
