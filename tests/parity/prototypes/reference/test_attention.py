"""The dense attention against its definition, one position at a time."""

import math

import pytest
import torch

from parity.prototypes.reference.attention import ttt_attention

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def by_definition(query, keys, values, mask, own_position):
    """Row p sees column j <= p - s through step 0 and column p - d, d < s, through step s - d."""
    batch, heads, length, dim = query.shape
    group, last = heads // keys[0].shape[1], len(keys) - 1
    out = torch.zeros_like(query)
    for b, n, p in torch.cartesian_prod(*map(torch.arange, (batch, heads, length))).tolist():
        seen = []
        for column in (column for column in range(p + 1) if mask[b, column]):
            d = p - column
            step, read = (last - d, p if own_position else column) if d < last else (0, column)
            seen.append((keys[step][b, n // group, read], values[step][b, n // group, read]))
        scores = [float(query[b, n, p] @ key) / math.sqrt(dim) for key, _ in seen]
        weights = [math.exp(score - max(scores)) for score in scores]
        out[b, n, p] = sum(w / sum(weights) * value for w, (_, value) in zip(weights, seen, strict=True))
    return out


def draw(steps, kv_heads):
    """Six positions, four heads of five."""
    pairs = torch.randn(2, steps, 2, kv_heads, 6, 5, dtype=torch.float64)
    return torch.randn(2, 4, 6, 5, dtype=torch.float64), list(pairs[0]), list(pairs[1])


@pytest.mark.parametrize("own_position", [True, False])
@pytest.mark.parametrize(("steps", "kv_heads"), [(1, 4), (2, 1), (3, 2), (5, 4), (5, 1), (9, 2)])
def test_dense_form_is_the_definition(steps, kv_heads, own_position):
    """Nine steps are more than the six positions."""
    given = *draw(steps, kv_heads), PADDED, own_position
    torch.testing.assert_close(ttt_attention(*given), by_definition(*given), rtol=0, atol=1e-13)
