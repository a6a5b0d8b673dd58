"""Ends of a run that would train nothing, or nothing that is a number: what each of them says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ports.errors import InputError
from ports.training.metrics import PassTotals
from ports.training.optimizer import without_gradient

SHOWN = 8
"""Sample files that an error names."""


def no_number(field: str, found: Sequence[tuple[list[str], str]]) -> InputError:
    """A loss, norm or gradient that is NaN or Inf: what was ``found`` in which files; the first is said of all."""
    files = list(dict.fromkeys(file for each, _ in found for file in each))
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return InputError(", ".join(files[:SHOWN]) + more, field, found[0][1], "a finite number; nothing of it is saved")


def without_effect(records: Path, totals: PassTotals) -> InputError:
    """A pass over nothing, which nobody saves."""
    found = f"no row in the loss in a pass of {totals.batches} batches ({totals.skipped} bad records, "
    found += f"{totals.empty} outside the loss)"
    return InputError(records, "records", found, "answers within --max-length")


def unmoved(steps: int, rate: float) -> InputError:
    """An optimizer step that changed no bit of any weight, at a ``rate`` above zero."""
    found = f"not one moved in optimizer step {steps} at a rate of {rate:g}"
    return InputError("draft", "weights", found, "a step that moves some: a larger --lr, or another launcher")


def refuse_unreached(objective: nn.Module) -> None:
    """Every trained tensor has a gradient once a row was in the loss.

    Raises:
        InputError: some have none.
    """
    if missing := without_gradient(objective):
        raise InputError("draft", missing[0], f"no gradient, as in {len(missing)} tensors", "one in every tensor")
