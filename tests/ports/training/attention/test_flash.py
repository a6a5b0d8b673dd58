"""The fast TTT attention against the dense one, output and every gradient, and what the dense one cannot do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ports.training.alignment import Alignment
from ports.training.attention.dense import ttt_attention
from ports.training.attention.flash import fast_attention_name, fast_ttt_attention

BOTH = list(Alignment)
SHAPES = [
    (2, 4, 4, 1, 16),
    (1, 4, 1, 2, 20),
    (2, 4, 2, 3, 16),
    (3, 4, 2, 7, 20),
    (1, 2, 2, 33, 64),
    (1, 8, 2, 130, 64),
    (2, 4, 1, 130, 20),
]
"""B, query heads, key/value heads, T, head dim."""


def draw(shape, steps, dtype=torch.float64):
    """Query, and keys and values of every step, in the memory layout of the projections."""
    batch, heads, kv_heads, length, width = shape
    counts = [heads] + [kv_heads] * 2 * steps
    return [torch.randn(batch, length, count, width, dtype=torch.float64).to(dtype).transpose(1, 2) for count in counts]


def right_padding(batch, length):
    """Every sample one fifth shorter than the one before."""
    lengths = torch.tensor([max(1, length * (5 - sample) // 5) for sample in range(batch)])
    return (torch.arange(length) < lengths[:, None]).long()


def run(function, inputs, grad, alignment, mask, dtype=None):
    """Output and gradients on the real rows: query, keys, values."""
    inputs = [states.detach().to(dtype or states.dtype).requires_grad_() for states in inputs]
    steps = len(inputs) // 2
    out = function(
        inputs[0],
        tuple(inputs[1 : steps + 1]),
        tuple(inputs[steps + 1 :]),
        mask,
        inputs[0].shape[-1] ** -0.5,
        alignment,
    )
    real = mask[:, None, :, None].bool()
    grads = torch.autograd.grad(out, inputs, grad.to(out.dtype) * real, allow_unused=True)
    grads = [torch.zeros_like(states) if g is None else g for states, g in zip(inputs, grads, strict=True)]
    return [out.detach() * real, *grads]


def errors(found, wanted, floor):
    """Largest difference over the largest entry, of output and of every gradient."""
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=floor)).item()
        for a, b in zip(found, wanted, strict=True)
    ]


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("step", [0, 1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_is_the_dense_form(shape, step, alignment):
    inputs, mask = draw(shape, step + 1), right_padding(shape[0], shape[3])
    grad = torch.randn_like(inputs[0])
    found = run(fast_ttt_attention, inputs, grad, alignment, mask)
    wanted = run(ttt_attention, inputs, grad, alignment, mask)
    assert max(errors(found, wanted, floor=1e-3)) <= 1e-12
    assert all(bool(value.isfinite().all()) for value in found)


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_and_bfloat16_err_like_the_dense_form(shape, step, alignment):
    inputs, mask = draw(shape, step + 1, torch.bfloat16), right_padding(shape[0], shape[3])
    grad = torch.randn_like(inputs[0])
    exact = run(ttt_attention, inputs, grad, alignment, mask, torch.float64)
    largest = max(value.abs().max() for value in exact)
    for dtype, bound in ((torch.float32, 5e-7), (torch.bfloat16, 1e-6)):
        found, dense = (
            errors(run(function, inputs, grad, alignment, mask, dtype), exact, floor=largest)
            for function in (fast_ttt_attention, ttt_attention)
        )
        assert max(found) <= max(bound, 1.05 * max(dense)), (dtype, found, dense)


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("steps", [1, 3])
def test_gradcheck(steps, alignment):
    inputs = [states.requires_grad_() for states in draw((2, 4, 2, 3, 2), steps)]

    def function(query, *states):
        return fast_ttt_attention(query, states[:steps], states[steps:], None, 0.7, alignment)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_masked_key_has_weight_exactly_0(step, alignment):
    inputs, mask = draw((2, 4, 2, 9, 4), step + 1), right_padding(2, 9)
    padded = (mask == 0)[:, None, :, None]
    grad = torch.randn_like(inputs[0])
    quiet = run(fast_ttt_attention, inputs, grad, alignment, mask)
    loud = [torch.where(padded, torch.full_like(states, 1e30), states) for states in inputs]
    for value, wanted in zip(run(fast_ttt_attention, loud, grad, alignment, mask), quiet, strict=True):
        assert torch.equal(value, wanted)
    for gradient in quiet[1:]:
        assert not gradient[padded.expand_as(gradient)].any()


@pytest.mark.parametrize("alignment", BOTH)
def test_the_future_does_not_reach_back(alignment):
    inputs = [states.requires_grad_() for states in draw((1, 2, 1, 8, 4), 3)]
    out = fast_ttt_attention(inputs[0], tuple(inputs[1:4]), tuple(inputs[4:]), None, 0.5, alignment)
    (gradient,) = torch.autograd.grad(out[:, :, 4].sum(), (inputs[4],))
    assert not gradient[:, :, 3:].any()
    assert bool(gradient[:, :, :3].abs().sum(-1).all())


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wholly_padded_sample_gives_no_nan_either_way(alignment, dtype):
    inputs = [states.requires_grad_() for states in draw((2, 2, 1, 5, 4), 3, dtype)]
    mask = torch.tensor([[0] * 5, [1] * 5])
    out = fast_ttt_attention(inputs[0], tuple(inputs[1:4]), tuple(inputs[4:]), mask, 0.5, alignment)
    out.float().sum().backward()
    assert out.dtype is dtype
    assert all(bool(value.isfinite().all()) for value in (out, *(states.grad for states in inputs)))


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 1], [1, 0, 1, 1, 1]])
@pytest.mark.parametrize("alignment", BOTH)
def test_any_other_padding_goes_to_the_dense_form(alignment, rows):
    query, *states = draw((1, 2, 1, 5, 4), 3)
    arguments = (query, tuple(states[:3]), tuple(states[3:]), torch.tensor([rows]), 0.5, alignment)
    assert torch.equal(fast_ttt_attention(*arguments), ttt_attention(*arguments))


def test_autocast_decides_the_dtype():
    query, *states = draw((1, 4, 2, 9, 8), 3, torch.float32)
    states[3:] = [value.bfloat16() for value in states[3:]]
    inputs = [value.requires_grad_() for value in (query, *states)]
    with torch.autocast("cpu", torch.bfloat16):
        out = fast_ttt_attention(inputs[0], tuple(inputs[1:4]), tuple(inputs[4:]), None, 0.3, Alignment.CHAIN)
        out.float().sum().backward()
        dense = ttt_attention(query, tuple(states[:3]), tuple(states[3:]), torch.ones(1, 9), 0.3, Alignment.CHAIN)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), dense.float(), rtol=0.02, atol=0.02)
    assert all(value.grad.dtype is value.dtype for value in inputs)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operator returns."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        self.entries = max([self.entries, *(value.numel() for value in tensors)])
        return result


@pytest.mark.parametrize("alignment", BOTH)
def test_no_tensor_grows_with_the_square_of_t(alignment):
    largest = {}
    for length in (1024, 4096):
        inputs = [states.float().requires_grad_() for states in draw((1, 2, 1, length, 8), 3)]
        with Largest() as seen:
            out = fast_ttt_attention(inputs[0], tuple(inputs[1:4]), tuple(inputs[4:]), None, 0.3, alignment)
            out.sum().backward()
        largest[length] = seen.entries
    assert largest[4096] <= 4.1 * largest[1024]
    assert largest[4096] < 4096**2 // 8


def test_a_second_derivative_is_refused():
    inputs = [states.requires_grad_() for states in draw((1, 2, 1, 4, 2), 1)]
    out = fast_ttt_attention(inputs[0], (inputs[1],), (inputs[2],), None, 0.5, Alignment.CHAIN)
    direction = torch.randn_like(out).requires_grad_()
    (gradient,) = torch.autograd.grad(out, inputs[0], direction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("alignment", BOTH)
def test_transformers_knows_it_and_dropout_is_refused(alignment):
    query, *states = draw((1, 2, 1, 4, 2), 2)
    function = ALL_ATTENTION_FUNCTIONS[fast_attention_name(alignment)]
    arguments = (query, tuple(states[:2]), tuple(states[2:]), torch.ones(1, 4))
    out, weights = function(torch.nn.Identity(), *arguments, scaling=0.5)
    assert weights is None
    torch.testing.assert_close(out.transpose(1, 2), ttt_attention(*arguments, 0.5, alignment))
    with pytest.raises(ValueError, match=r"attention_dropout: found 0.1, expected 0.0"):
        function(torch.nn.Identity(), *arguments, scaling=0.5, dropout=0.1)


@pytest.mark.parametrize("alignment", BOTH)
def test_the_name_is_not_taken_for_the_flash_attn_package(alignment):
    assert "flash" not in fast_attention_name(alignment)
