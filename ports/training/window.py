"""The micro-batches that one optimizer step is taken from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Window:
    """The micro-batches of one optimizer step on one process.

    ``files`` lie behind each, ``rows`` [k] are in the loss at every TTT step, which is divided by ``divisor`` [k];
    ``losses`` are those so far, and ``teaches`` whether any process has a row.
    """

    files: list[list[str]]
    rows: Tensor
    divisor: Tensor
    losses: list[Tensor] = field(default_factory=list)
    teaches: bool = False

    def seen(self) -> Tensor:
        """[2] int64: losses so far that are NaN or Inf, and rows in the loss."""
        return torch.stack([(~torch.stack(self.losses).isfinite()).sum(), self.rows[0]])

    def wrong_losses(self, first: int, step: str) -> list[tuple[list[str], str]]:
        """The files and words of each loss that is NaN or Inf; ``first`` is the number of the first micro-batch."""
        wrong = (~torch.stack(self.losses).isfinite()).nonzero().flatten().tolist()
        return [
            (self.files[place], f"{float(self.losses[place])} at {step}, micro-batch {first + place}")
            for place in wrong
        ]
