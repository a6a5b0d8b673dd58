"""What every check that runs a side again has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from parity.kit.side import Batch
from parity.kit.tolerances import Tolerances


@dataclass(frozen=True)
class Terms:
    """``weights`` are what the port starts from, by its own names; ``case`` names the rows."""

    batches: Sequence[Batch]
    seed: int
    steps: int
    table: Tolerances
    case: str
    weights: Mapping[str, Tensor] = field(default_factory=dict)
