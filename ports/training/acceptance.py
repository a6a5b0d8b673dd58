"""What chain decoding would accept of a draft, counted on records: the tokens before a proposal are the record's.

Shapes: B batch, T positions, k TTT steps.

In chain alignment row q + s of TTT step s holds the token that a chain from row q proposes in place s. Every row in the
loss starts a chain, which ends with the answer it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.nn import functional as F


def count_chains(right: Tensor, inside: Tensor) -> Tensor:
    """[2, k]: chains that came to place s with all before it accepted, and those whose token there was accepted too.

    Args:
        right: [k, B, T] bool, by row: did step s give the verifier's token?
        inside: [B, T], not 0 on the rows in the loss.
    """
    alive, counts = inside.bool(), []
    for step, hits in enumerate(right):
        reached = alive & _ahead(inside.bool(), step)
        alive = reached & _ahead(hits, step)
        counts.append(torch.stack([reached.sum(), alive.sum()]))
    return torch.stack(counts, dim=1)


def _ahead(values: Tensor, step: int) -> Tensor:
    """``values[:, q + step]`` at q, False past the end."""
    return F.pad(values[:, step:], (0, min(step, values.shape[1])))


@dataclass(frozen=True)
class Acceptance:
    """A draft after ``steps`` optimizer steps, in pass ``epoch``, on held-out records.

    ``loss`` is the mean, ``accuracies`` a_1 .. a_k those of tokens whose chain came so far; 0 where none did.
    """

    steps: int
    epoch: int
    loss: float
    accuracies: list[float]

    @property
    def expected(self) -> float:
        """Tokens that one pass of the verifier gives: 1 + a_1 + a_1 a_2 + ..."""
        return 1.0 + sum(accumulate(self.accuracies, mul))


def accuracies_of(counts: Tensor) -> list[float]:
    """From what :func:`count_chains` counts."""
    return [accepted / reached if reached else 0.0 for reached, accepted in counts.T.tolist()]
