"""Where the documents of a batch lie: one a row, padded, or packed end to end in a single row.

A mask [B, T] says both: 0 is padding, 1 a real position; a packed row [1, T] has the number of the document, from 1 on
in order. (Speculators' ``document_ids`` count from 0 and have -1 on padding.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ports.training.attention.once import once_per_tensor


@dataclass(frozen=True)
class Documents:
    """The documents of a mask.

    ``lengths`` are those of a packed row, in tokens; none where every row is one document. ``positions`` [1, T] int64
    count from 0 in every document. ``first`` [1, T] bool marks where they are 0, None where that is column 0 alone.
    ``right_padded``: every row is one document, and all padding comes after it. Attention that never looks ahead needs
    no mask then.
    """

    lengths: tuple[int, ...]
    positions: Tensor
    first: Tensor | None
    right_padded: bool


@once_per_tensor
def documents_of(mask: Tensor) -> Documents:
    """Read a mask [B, T]; waits for its device, once per mask tensor and not once per step and layer.

    Raises:
        ValueError: several documents in a row of a batch of several rows, or out of order.
    """
    columns, real = torch.arange(mask.shape[1], device=mask.device)[None], mask.bool()
    ones_first = (real[:, :-1] | ~real[:, 1:]).all()
    packed, right_padded = torch.stack([(mask > 1).any(), ones_first]).tolist()
    if not packed:
        return Documents((), columns, None, right_padded)
    lengths = _lengths(mask)
    positions = torch.cat([columns[0, :length] for length in lengths])[None]
    return Documents(lengths, positions, positions == 0, right_padded=False)


def _lengths(mask: Tensor) -> tuple[int, ...]:
    numbers, counts = torch.unique_consecutive(mask, return_counts=True)
    if mask.shape[0] > 1 or numbers.tolist() != list(range(1, len(numbers) + 1)):
        found = f"{tuple(mask.shape)} with numbers {numbers.tolist()[:5]}"
        raise ValueError(f"document_ids: found {found}, expected one row [1, T] numbered 1, 2, 3, ..")
    return tuple(counts.tolist())
