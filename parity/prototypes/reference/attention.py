"""TTT attention in its dense form: one [T, T] table of scores per head, some diagonals of it overwritten.

Shapes: B batch, N query heads, T positions, e head dim; s the current step.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    scores = ttt_scores(query, keys, own_position)
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(scores.masked_fill(~_visible(mask), float("-inf")), dim=-1, dtype=wide).to(query.dtype)
    return ttt_values(weights, values, own_position)


def ttt_scores(query: Tensor, keys: Sequence[Tensor], own_position: bool) -> Tensor:
    """The table of scores [B, N, T, T], nothing masked."""
    keys = [_repeated(key, query) for key in keys]
    step, scale = len(keys) - 1, query.shape[-1] ** -0.5
    scores = query @ keys[0].transpose(2, 3) * scale
    for d in range(min(step, query.shape[2])):
        scores = torch.diagonal_scatter(scores, _dots(query, keys[step - d], d, own_position) * scale, -d, 2, 3)
    return scores


def _repeated(value: Tensor, query: Tensor) -> Tensor:
    """[B, K, T, e] -> [B, N, T, e]."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def _dots(query: Tensor, key: Tensor, d: int, own_position: bool) -> Tensor:
    """q[p].k for p = d..T-1, [B, N, T - d]."""
    length = query.shape[2]
    key = key[:, :, d:] if own_position else key[:, :, : length - d]
    return (query[:, :, d:] * key).sum(-1)


def _visible(mask: Tensor) -> Tensor:
    """[B, 1, T, T]: columns not after the row and not padding."""
    length = mask.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None] & mask.bool()[:, None, None, :]


def ttt_values(weights: Tensor, values: Sequence[Tensor], own_position: bool) -> Tensor:
    """Weights [B, N, T, T] times values, the overwritten diagonals with the values of their own step."""
    values = [_repeated(value, weights) for value in values]
    step, length = len(values) - 1, weights.shape[2]
    first, extra = weights, []
    for d in range(min(step, length)):
        share = weights.diagonal(-d, 2, 3)[..., None]
        value = values[step - d][:, :, d:] if own_position else values[step - d][:, :, : length - d]
        extra.append(torch.nn.functional.pad(share * value, (0, 0, d, 0)))
        first = torch.diagonal_scatter(first, torch.zeros_like(share[..., 0]), -d, 2, 3)
    return torch.stack([first @ values[0], *extra]).sum(0) if extra else first @ values[0]
