"""A key/value cache for rows of different lengths.

Shapes: B rows, K slots written before, Q new ones.

Every pass writes Q slots for all rows at once; a row owns only those whose token is part of its text. The others stay
as holes that nobody looks at. Rotary positions are put into the keys before they are stored, so holes shift nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache


class Memory:
    """``cache`` for transformers' layers; ``owned`` [B, K], true on the slots that a row reads; their ``positions``."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.cache = DynamicCache()
        self.owned = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self.positions = torch.zeros(rows, 0, dtype=torch.int64, device=device)

    @property
    def slots(self) -> int:
        """How many slots were written, K."""
        return self.owned.shape[1]

    def announce(self, fresh: Tensor, positions: Tensor) -> None:
        """The next pass writes slots: ``fresh`` [B, Q] where a row owns them, at ``positions`` [B, Q] of its text."""
        self.owned = torch.cat([self.owned, fresh], dim=1)
        self.positions = torch.cat([self.positions, positions], dim=1)

    def keep(self, fresh: Tensor) -> None:
        """Of the last Q slots a row owns only ``fresh`` [B, Q]; the others become holes."""
        self.owned = torch.cat([self.owned[:, : self.slots - fresh.shape[1]], fresh], dim=1)

    def crop(self, slots: int) -> None:
        """Take back what was written after the first ``slots``."""
        if slots < self.slots:
            self.cache.crop(slots - self.slots)
        self.owned, self.positions = self.owned[:, :slots], self.positions[:, :slots]

    def visible(self, width: int) -> Tensor:
        """bool [B, 1, Q, K]: what each of the last Q = ``width`` slots attends to: owned slots up to itself."""
        columns = torch.arange(self.slots, device=self.owned.device)
        causal = columns <= columns[-width:, None]
        return (self.owned[:, None] & causal)[:, None]
