"""What both sides of a pair are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from parity.observe import Draw

Batch = Any
"""What ``loss`` is given. Without a ``loss``: keyword arguments (a mapping), arguments (a tuple) or one argument."""

STEPS = 5
"""Optimizer steps of a curve."""


@dataclass(frozen=True)
class Case:
    """What both sides are given.

    Args:
        name: in reports; default: the module's class.
        batches: at least one; they come round when there are more steps. The first is kept whole.
        seed: set before a module is built, and again before the first step.
        steps: optimizer steps of the curve, at least one.
        weights: to start from, by the side's own names; what the side lacks is ignored, the comparison finds it.
        draws: what is drawn at random by a name, each with the function that draws it on this side.
        replayed: the draws of another run, by their keys, which take the place of this one's.
    """

    name: str = ""
    batches: Sequence[Batch] = ()
    seed: int = 0
    steps: int = STEPS
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Mapping[Draw, str] = field(default_factory=dict)
    replayed: Mapping[str, Tensor] = field(default_factory=dict)
