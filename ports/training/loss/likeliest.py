"""The largest entries of wide rows: on a CPU by way of the maxima of blocks, several times as fast as torch.topk.

The k largest entries of a row lie in the k blocks with the largest maxima; only those blocks are searched.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 512
"""Columns a block."""


def topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest entries of every row of ``values`` [C, D], largest first, and their columns: [C, count].

    As torch.topk, which of several equal entries are taken is left open.
    """
    if not _in_blocks(values, count):
        return torch.topk(values, count, dim=-1)
    blocks = values.unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(count, dim=-1).indices
    candidates = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    largest, place = candidates.topk(count, dim=-1)
    return largest, chosen.gather(1, place // BLOCK) * BLOCK + place % BLOCK


def argmax(values: Tensor) -> Tensor:
    """The column of the largest entry of every row of ``values`` [C, D], the first of several: [C]."""
    if not _in_blocks(values, 1):
        return values.argmax(-1)
    blocks = values.unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).argmax(-1)
    within = blocks[torch.arange(len(values), device=values.device), chosen].argmax(-1)
    return chosen * BLOCK + within


def _in_blocks(values: Tensor, count: int) -> bool:
    """Is there more than is searched anyway, in whole blocks, on a device that gains from it?"""
    columns = values.shape[-1]
    return values.device.type == "cpu" and columns % BLOCK == 0 and columns > 2 * count * BLOCK
