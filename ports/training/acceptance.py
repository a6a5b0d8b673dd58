"""What chain decoding would accept of a draft, counted on records: the tokens before a proposal are the record's.

Shapes: B batch, T positions, N rows in the loss, h hidden size, D the vocabulary the draft speaks, k TTT steps.

In chain alignment row q + s of TTT step s holds the token that a chain from row q proposes in place s. Every row in the
loss starts a chain, which ends with the answer it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.nn import functional as F

from ports.training.loss import ROWS, Verifier, kl_sum


def score_chains(
    hidden: Sequence[Tensor],
    masks: Sequence[Tensor],
    target: Tensor,
    verifier: Callable[[Tensor], Verifier],
    wanted: Callable[[Tensor], Tensor],
    output: tuple[Callable[[Tensor], Tensor], Tensor],
) -> Tensor:
    """[4, k] float64, sums that add up over batches: KL divergence, rows in the loss, and :func:`count_chains`.

    Args:
        hidden: [B, T, h] of each step.
        masks: [B, T] for each step, 1 on its rows in the loss; those of the first step hold all others'.
        target: [B, T, h], the verifier's last hidden state.
        verifier: from rows [N, h] of it to the target distribution.
        wanted: from such rows to the verifier's likeliest token as an id of the draft, [N], -1 if it has none.
        output: the draft's norm and the weight [D, h] of its head.
    """
    (norm, head), rows = output, masks[0].flatten().nonzero().squeeze(1)
    kl = torch.zeros(len(hidden), dtype=torch.float64, device=target.device)
    right = torch.zeros(len(hidden), *masks[0].shape, dtype=torch.bool, device=target.device)
    for chunk in rows.split(ROWS):
        states = target.flatten(0, 1)[chunk]
        probabilities, tokens = verifier(states).probabilities, wanted(states)
        for step, (out, mask) in enumerate(zip(hidden, masks)):
            logits = F.linear(norm(out.flatten(0, 1)[chunk]), head)
            kl[step] += kl_sum(logits, probabilities, mask.flatten()[chunk])
            right[step].view(-1)[chunk] = logits.argmax(-1) == tokens
    return torch.stack([kl, torch.stack([mask.sum() for mask in masks]), *count_chains(right, masks[0])])


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
