"""Look into a running loop without changing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ports.training.data import Batch


@dataclass(frozen=True)
class StepRecord:
    """What happened at one micro-batch.

    ``grad_norm`` is the norm before clipping that the clipping function returned (None where none was taken);
    ``lr_used`` and ``lr_after`` are the rates before and after the scheduler's step; ``stepped`` tells whether this
    micro-batch closed an optimizer step.
    """

    micro_batch: int
    epoch: int
    loss: float
    step_losses: tuple[float, ...]
    lr_used: float
    lr_after: float
    grad_norm: float | None
    correct: int
    rows: int
    top: tuple[int, ...]
    stepped: bool
    logged: dict[str, float]


class Observer:
    """Every method does nothing; override what you need. Called on every process, in this order."""

    def started(self, objective: nn.Module, optimizer: Any) -> None:
        """Everything is prepared; nothing has been drawn from the random generators by the loop yet."""

    def batch(self, micro_batch: int, batch: Batch) -> None:
        """A micro-batch is about to run forward."""

    def outcome(self, micro_batch: int, outcome: Any) -> None:
        """The forward of a micro-batch is done."""

    def gradients(self, micro_batch: int, objective: nn.Module) -> None:
        """The backward of a micro-batch is done; gradients are accumulated, not clipped."""

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        """A micro-batch is done, with the optimizer step if it closed one."""

    def printed(self, line: str) -> None:
        """A line was printed by the main process."""

    def finished(self, objective: nn.Module) -> None:
        """Training is over."""
