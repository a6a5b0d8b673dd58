"""The dense attention against its definition, one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from parity.prototypes.reference.attention import ttt_attention


def by_definition(query: Tensor, keys: list[Tensor], values: list[Tensor], mask: Tensor, own_position: bool) -> Tensor:
    """Row p sees column j <= p - s through step 0 and column p - d, d < s, through step s - d."""
    batch, heads, length, dim = query.shape
    group, last = heads // keys[0].shape[1], len(keys) - 1
    out = torch.zeros_like(query)
    for b in range(batch):
        for n in range(heads):
            for p in range(length):
                seen = []
                for column in range(p + 1):
                    d = p - column
                    step, read = (last - d, p if own_position else column) if d < last else (0, column)
                    if mask[b, column]:
                        seen.append((keys[step][b, n // group, read], values[step][b, n // group, read]))
                scores = [float(query[b, n, p] @ key) / math.sqrt(dim) for key, _ in seen]
                weights = [math.exp(score - max(scores)) for score in scores]
                out[b, n, p] = sum(w / sum(weights) * value for w, (_, value) in zip(weights, seen, strict=True))
    return out


def draw(
    steps: int, kv_heads: int, heads: int = 4, length: int = 6, dim: int = 5
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    query = torch.randn(2, heads, length, dim, dtype=torch.float64)
    pairs = torch.randn(2, steps, 2, kv_heads, length, dim, dtype=torch.float64)
    return query, list(pairs[0]), list(pairs[1])


@pytest.mark.parametrize("own_position", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_dense_form_is_the_definition(steps: int, kv_heads: int, own_position: bool) -> None:
    """Nine steps are more than the six positions."""
    query, keys, values = draw(steps, kv_heads)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    found = ttt_attention(query, keys, values, mask, own_position)
    expected = by_definition(query, keys, values, mask, own_position)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("own_position", [True, False])
def test_gradients_are_the_definition_s(own_position: bool) -> None:
    query, keys, values = draw(4, 2)
    inputs = [tensor.requires_grad_() for tensor in (query, *keys, *values)]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    weight = torch.randn(query.shape, dtype=torch.float64)
    found = torch.autograd.grad((ttt_attention(query, keys, values, mask, own_position) * weight).sum(), inputs)
    numeric = [_slope(inputs, which, keys, values, query, mask, own_position, weight) for which in range(len(inputs))]
    for analytic, (direction, slope) in zip(found, numeric, strict=True):
        assert float((analytic * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def _slope(
    inputs: list[Tensor],
    which: int,
    keys: list[Tensor],
    values: list[Tensor],
    query: Tensor,
    mask: Tensor,
    own_position: bool,
    weight: Tensor,
) -> tuple[Tensor, float]:
    """The definition's central difference along a random direction of one input."""
    direction, size, sides = torch.randn_like(inputs[which]), 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            inputs[which].add_(direction, alpha=sign * size)
            sides.append(float((by_definition(query, keys, values, mask, own_position) * weight).sum()))
            inputs[which].sub_(direction, alpha=sign * size)
    return direction.detach(), (sides[0] - sides[1]) / (2 * size)


def test_both_alignments_agree_before_step_two() -> None:
    for steps in (1, 2):
        query, keys, values = draw(steps, 2)
        mask = torch.ones(2, 6)
        own, chain = (ttt_attention(query, keys, values, mask, own_position=flag) for flag in (True, False))
        assert torch.equal(own, chain)


def test_alignments_part_at_step_two() -> None:
    query, keys, values = draw(3, 2)
    own, chain = (ttt_attention(query, keys, values, torch.ones(2, 6), own_position=flag) for flag in (True, False))
    assert torch.equal(own[:, :, 0], chain[:, :, 0])
    assert ((own - chain).abs().amax((0, 1, 3))[1:] > 1e-3).all()


def test_padding_is_never_seen() -> None:
    query, keys, values = draw(3, 2)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    before = ttt_attention(query, keys, values, mask, own_position=True)
    for tensor in (*keys, *values):
        tensor[:, :, 4:] = 1e3
    assert torch.equal(ttt_attention(query, keys, values, mask, own_position=True)[:, :, :4], before[:, :, :4])


def test_half_precision_stays_half() -> None:
    query, keys, values = draw(3, 2)
    half = [tensor.bfloat16() for tensor in (query, *keys, *values)]
    found = ttt_attention(half[0], half[1:4], half[4:], torch.ones(2, 6), own_position=True)
    assert found.dtype == torch.bfloat16
    expected = by_definition(query, keys, values, torch.ones(2, 6), own_position=True)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05)
