"""The TTT attention against a loop over positions that follows the formulas word by word."""

import math

import pytest
import torch

from ports.training.alignment import Alignment
from ports.training.attention.dense import attention_name, ttt_attention, ttt_cache

BOTH = list(Alignment)
SHAPES = [(1, 1, 1, 1, 2), (2, 4, 2, 7, 6), (2, 3, 1, 5, 4), (1, 2, 2, 9, 10)]
"""B, query heads, key/value heads, T, head dim."""


def by_hand(query, keys, values, mask, scale, alignment):
    """One row at a time; padded rows stay zero."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // keys[0].shape[1]
    for b, h, p in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).reshape(-1, 3).tolist():
        if mask[b, p]:
            out[b, h, p] = row_by_hand(query[b, h, p], keys, values, mask[b], scale, alignment, (b, h // groups, p))
    return out


def row_by_hand(query, keys, values, mask, scale, alignment, where):
    b, h, p = where
    step = len(keys) - 1
    seen = [(0, j) for j in range(p - step + 1) if mask[j]]
    for distance in range(min(step - 1, p) + 1 if step else 0):
        if mask[p - distance]:
            seen.append((step - distance, p if alignment is Alignment.PROTOTYPE else p - distance))
    scores = torch.stack([query @ keys[i][b, h, j] * scale for i, j in seen])
    weights = scores.exp() / scores.exp().sum()
    return sum(weight * values[i][b, h, j] for weight, (i, j) in zip(weights, seen, strict=True))


def draw(shape, steps, seed=0):
    batch, heads, kv_heads, length, width = shape
    generator = torch.Generator().manual_seed(seed)

    def states(count):
        return torch.randn(batch, count, length, width, generator=generator, dtype=torch.float64, requires_grad=True)

    query = states(heads)
    keys, values = tuple(states(kv_heads) for _ in range(steps)), tuple(states(kv_heads) for _ in range(steps))
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, math.ceil(length * 0.7) :] = 0
    return query, keys, values, mask


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_loop_over_positions(shape, steps, alignment):
    query, keys, values, mask = draw(shape, steps)
    scale = shape[-1] ** -0.5
    out = ttt_attention(query, keys, values, mask, scale, alignment)
    real = mask[:, None, :, None]
    reference = by_hand(query, keys, values, mask, scale, alignment)
    torch.testing.assert_close(out * real, reference, rtol=1e-12, atol=1e-12)
    inputs = (query, *keys, *values)
    direction = torch.randn_like(out)
    gradients = torch.autograd.grad((out * real * direction).sum(), inputs, allow_unused=True)
    expected = torch.autograd.grad((reference * direction).sum(), inputs, allow_unused=True)
    for gradient, wanted, value in zip(gradients, expected, inputs, strict=True):
        zero = torch.zeros_like(value)
        torch.testing.assert_close(
            zero if gradient is None else gradient, zero if wanted is None else wanted, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("alignment", BOTH)
def test_gradcheck(alignment):
    query, keys, values, mask = draw((2, 2, 1, 4, 2), 3)

    def function(query, *states):
        return ttt_attention(query, states[:3], states[3:], mask, 0.7, alignment)

    assert torch.autograd.gradcheck(function, (query, *keys, *values))


def test_the_alignments_agree_until_step_1_and_differ_from_step_2_on():
    query, keys, values, mask = draw((1, 2, 1, 6, 4), 4)
    for steps, same in [(1, True), (2, True), (3, False), (4, False)]:
        first, second = (ttt_attention(query, keys[:steps], values[:steps], mask, 0.5, a) for a in BOTH)
        assert torch.equal(first, second) is same


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_masked_key_has_weight_exactly_0(alignment, steps):
    query, keys, values, mask = draw((2, 2, 2, 6, 4), steps)
    padded = mask[:, None, :, None] == 0
    out = ttt_attention(query, keys, values, mask, 0.5, alignment)
    loud = tuple(torch.where(padded, torch.full_like(state, 1e30), state) for state in values)
    assert torch.equal(ttt_attention(query, keys, loud, mask, 0.5, alignment)[~padded.expand_as(out)],
                       out[~padded.expand_as(out)])  # fmt: skip
    for state in torch.autograd.grad((out * ~padded).sum(), (*keys, *values), allow_unused=True):
        assert state is None or not state[padded.expand_as(state)].any()


@pytest.mark.parametrize("alignment", BOTH)
def test_the_future_does_not_reach_back(alignment):
    query, keys, values, mask = draw((1, 2, 1, 8, 4), 3)
    mask[:] = 1
    out = ttt_attention(query, keys, values, mask, 0.5, alignment)
    (gradient,) = torch.autograd.grad(out[:, :, 4].sum(), (values[0],))
    assert not gradient[:, :, 3:].any()
    assert bool(gradient[:, :, :3].abs().sum(-1).all())


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wholly_padded_sample_gives_no_nan_either_way(alignment, dtype):
    query, keys, values, mask = draw((2, 2, 1, 5, 4), 3)
    query, *states = (value.detach().to(dtype).requires_grad_() for value in (query, *keys, *values))
    mask[0] = 0
    out = ttt_attention(query, tuple(states[:3]), tuple(states[3:]), mask, 0.5, alignment)
    assert out.dtype is dtype
    assert bool(out.isfinite().all())
    out.float().sum().backward()
    assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in (query, *states))


def test_rows_of_one_value_average_to_it_in_bfloat16():
    query, keys, values, mask = draw((1, 2, 1, 6, 4), 3)
    constant = tuple(torch.ones_like(value, dtype=torch.bfloat16) for value in values)
    keys = tuple(key.bfloat16() for key in keys)
    out = ttt_attention(query.bfloat16(), keys, constant, torch.ones_like(mask), 0.5, Alignment.CHAIN)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=0.02)


def test_the_cache_keeps_the_steps_apart():
    cache = ttt_cache()
    first, second = torch.zeros(1, 1, 3, 2), torch.ones(1, 1, 3, 2)
    assert len(cache.update(first, first, layer_idx=0)[0]) == 1
    keys, values = cache.update(second, first, layer_idx=0)
    assert keys[0] is first
    assert keys[1] is second
    assert len(values) == 2
    assert len(cache.update(first, first, layer_idx=1)[0]) == 1


@pytest.mark.parametrize("alignment", BOTH)
def test_transformers_knows_it_and_dropout_is_refused(alignment):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    query, keys, values, mask = draw((1, 2, 1, 4, 2), 2)
    function = ALL_ATTENTION_FUNCTIONS[attention_name(alignment)]
    out, weights = function(torch.nn.Identity(), query, keys, values, mask, scaling=0.5)
    assert weights is None
    torch.testing.assert_close(out.transpose(1, 2), ttt_attention(query, keys, values, mask, 0.5, alignment))
    with pytest.raises(ValueError, match=r"attention_dropout: found 0.1, expected 0.0"):
        function(torch.nn.Identity(), query, keys, values, mask, scaling=0.5, dropout=0.1)
