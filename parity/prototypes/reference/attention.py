"""TTT attention in its dense form: one [T, T] table of scores per head, some diagonals of it overwritten.

Shapes: B batch, N query heads, K key heads, T positions, e head dim; s the current step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def ttt_attention(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask: Tensor, own_position: bool
) -> Tensor:
    """Attend from step s to the steps 0..s.

    Column j of row p holds q[p].k_0[j], except that column p - d (d = 0..s-1) holds the score of step s - d's key. That
    key is read at p (``own_position``, as the prototypes do) or at p - d, where its token stands.

    Args:
        query: [B, N, T, e].
        keys, values: one [B, K, T, e] per step, K dividing N.
        mask: [B, T], 1 on real positions.

    Returns:
        [B, N, T, e].
    """
    length, wide = mask.shape[1], torch.promote_types(query.dtype, torch.float32)
    visible = torch.ones(length, length, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    scores = ttt_scores(query, keys, own_position).masked_fill(~visible, float("-inf"))
    return ttt_values(torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype), values, own_position)


def ttt_scores(query: Tensor, keys: Sequence[Tensor], own_position: bool) -> Tensor:
    """The table of scores [B, N, T, T], nothing masked."""
    first, *later = _repeated(keys, query)
    scale = query.shape[-1] ** -0.5
    scores = query @ first.transpose(2, 3) * scale
    for d, key in _diagonals(later, query.shape[2], own_position):
        scores = torch.diagonal_scatter(scores, (query[:, :, d:] * key).sum(-1) * scale, -d, 2, 3)
    return scores


def ttt_values(weights: Tensor, values: Sequence[Tensor], own_position: bool) -> Tensor:
    """Weights [B, N, T, T] times values, the overwritten diagonals with the values of their own step."""
    first, *later = _repeated(values, weights)
    extra = []
    for d, value in _diagonals(later, weights.shape[2], own_position):
        share = weights.diagonal(-d, 2, 3)
        extra.append(torch.nn.functional.pad(share[..., None] * value, (0, 0, d, 0)))
        weights = torch.diagonal_scatter(weights, torch.zeros_like(share), -d, 2, 3)
    return torch.stack([weights @ first, *extra]).sum(0)


def _repeated(steps: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """[B, K, T, e] -> [B, N, T, e]."""
    return [step.repeat_interleave(like.shape[1] // step.shape[1], dim=1) for step in steps]


def _diagonals(later: Sequence[Tensor], length: int, own_position: bool) -> Iterator[tuple[int, Tensor]]:
    """For d = 0, 1, ... what rows p = d..T-1 read in column p - d: of step s - d, [B, N, T - d, e]."""
    for d, step in enumerate(later[::-1][:length]):
        yield d, step[:, :, d:] if own_position else step[:, :, : length - d]
