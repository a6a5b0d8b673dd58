"""No run ends well without effect: what is refused before it starts, and how weights are seen to move."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ports.errors import InputError
from ports.training.settings import TrainingSettings
from ports.training.shards import own_part

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of so many bytes."""


def refuse_idle(settings: TrainingSettings, num_files: int, batches: int, processes: int) -> None:
    """Refuse a run that would take no optimizer step at a positive rate.

    ``batches`` are the whole ones of a pass over ``num_files`` records, of all processes together.

    Raises:
        InputError: fewer batches than processes, fewer records than a step takes, or the first step of a warm-up alone.
    """
    if batches < processes:
        together = f" * {processes} processes = {settings.bs * processes}" if processes > 1 else ""
        raise InputError(settings.tmpdir, "records", num_files, f"at least bs = {settings.bs}{together}")
    passes, accumulation = settings.epoch + 1, settings.gradient_accumulation_steps
    total, warmup = settings.schedule(num_files, processes)
    if total == 0:
        expected = f"at least {settings.samples_per_step(processes)}, as many as an optimizer step takes"
        raise InputError(settings.tmpdir, "records", f"{num_files} in {passes} passes", expected)
    steps = -(-(batches // processes) // accumulation) * passes
    if warmup and min(steps, settings.max_steps or steps) == 1:
        raise InputError("command line", "optimizer steps", 1, "at least 2: the first of a warm-up has rate 0")


def without_gradient(module: nn.Module) -> list[str]:
    """Trained parameters that a backward has not reached, which an optimizer passes over in silence."""
    return [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]


def sums_of_bits(module: nn.Module) -> Tensor:
    """[N] int64: of every trained tensor, as far as it lies on this process, the sum of its words: any bit shows."""
    parts = [own_part(value.detach()).contiguous() for value in module.parameters() if value.requires_grad]
    return torch.stack([part.view(WORDS[part.element_size()]).sum(dtype=torch.int64) for part in parts])
