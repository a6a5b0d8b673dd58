"""Where the documents of a batch lie: one a row, padded, or packed end to end in a single row.

A mask [B, T] says both: 0 is padding, 1 a real position; a packed row [1, T] has the number of the document, from 1 on
in order. (Speculators' ``document_ids`` count from 0 and have -1 on padding.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ports.training.once import once_per_tensor


@dataclass(frozen=True)
class Documents:
    """The documents of a mask.

    ``lengths`` are those of a packed row, in tokens; none where every row is one document. ``positions`` [1, T] int64
    count from 0 in every document. ``first`` [1, T] bool marks where they are 0, None where that is column 0 alone.
    """

    lengths: tuple[int, ...]
    positions: Tensor
    first: Tensor | None


@once_per_tensor
def documents_of(mask: Tensor) -> Documents:
    """Read a mask [B, T]; waits for its device.

    Raises:
        ValueError: several documents in a row of a batch of several rows, or out of order.
    """
    columns = torch.arange(mask.shape[1], device=mask.device)[None]
    if not bool((mask > 1).any()):
        return Documents((), columns, None)
    numbers, counts = torch.unique_consecutive(mask, return_counts=True)
    if mask.shape[0] > 1 or numbers.tolist() != list(range(1, len(numbers) + 1)):
        found = f"{tuple(mask.shape)} with numbers {numbers.tolist()[:5]}"
        raise ValueError(f"document_ids: found {found}, expected one row [1, T] numbered 1, 2, 3, ..")
    positions = torch.cat([columns[0, :count] for count in counts.tolist()])[None]
    return Documents(tuple(counts.tolist()), positions, positions == 0)
