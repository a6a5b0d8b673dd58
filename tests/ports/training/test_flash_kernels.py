"""Every kernel against a softmax written out, and its backward with the log-sum-exp of a larger softmax."""

import pytest
import torch

from ports.training import flash_kernels
from ports.training.flash_kernels import Blocked, Causal, CudaEfficient, CudaFlash, kernel_for

SHAPES = [(1, 4, 4, 1, 16), (2, 4, 1, 3, 20), (2, 4, 2, 7, 64), (1, 8, 2, 130, 20), (3, 2, 2, 33, 8)]
"""B, H, K, L, e."""
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(shape, dtype=torch.float64, device="cpu"):
    batch, heads, kv_heads, length, width = shape
    drawn = [torch.randn(batch, length, count, width, dtype=torch.float64) for count in (heads, kv_heads, kv_heads)]
    return [states.to(device, dtype).transpose(1, 2).requires_grad_() for states in drawn]


def whole(query, key, value, scale, other):
    """The softmax over the causal columns and one more score ``other`` [B, H, L], whose value is zero."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(
        torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu(1), float("-inf")
    )
    lse = torch.logsumexp(torch.cat([scores, other[..., None]], dim=-1), dim=-1)
    return (scores - lse[..., None]).exp() @ value, lse, torch.logsumexp(scores, dim=-1)


def check(kernel, shape, dtype, device, tolerance):
    inputs, scale = draw(shape, dtype, device), shape[-1] ** -0.5
    exact = [states.detach().double().requires_grad_() for states in inputs]
    other = torch.randn(*inputs[0].shape[:3], dtype=torch.float64, device=device)
    out, lse, causal = whole(*exact, scale, other)
    grad = torch.randn_like(out).to(dtype)
    expected = torch.autograd.grad(out, exact, grad.double())
    with torch.no_grad():
        found = kernel.forward(*inputs, scale)
        alone = whole(*exact, scale, torch.full_like(other, float("-inf")))[0]
        merged = Causal(out.to(found.out.dtype), lse.to(found.lse.dtype), found.extra)
        gradients = kernel.backward(grad, *inputs, merged, scale)
    pairs = [(found.out, alone), (found.lse, causal), *zip(gradients, expected, strict=True)]
    for name, (value, wanted) in zip(("out", "lse", "dq", "dk", "dv"), pairs, strict=True):
        assert value.shape == wanted.shape, name
        assert (value.double() - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=0.1), name


@pytest.mark.parametrize("tile", [1, 1 << 9, 1 << 18])
@pytest.mark.parametrize("rows", [1, 5, 64, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocked_in_any_cut(shape, rows, tile, monkeypatch):
    monkeypatch.setattr(flash_kernels, "ROWS", rows)
    monkeypatch.setattr(flash_kernels, "TILE", tile)
    check(Blocked(), shape, torch.float64, "cpu", 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocked_computes_half_precision_in_float32(shape, dtype):
    check(Blocked(), shape, dtype, "cpu", 2e-6)


@pytest.mark.parametrize(("kernel", "dtype"), [(CudaFlash, torch.bfloat16), (CudaEfficient, torch.float32)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_calls_of_the_cuda_kernels_fit_this_torch(kernel, dtype, shape):
    query, key, value = (states.detach().to(dtype) for states in draw(shape, device="meta"))
    found = kernel().forward(query, key, value, 0.5)
    assert found.out.shape == query.shape
    assert found.lse.shape == query.shape[:3]
    later = Causal(found.out, found.lse[:, :, :], found.extra)
    gradients = kernel().backward(torch.empty_like(query), query, key, value, later, 0.5)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


@CUDA
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cuda_kernels(shape, dtype):
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    check(kernel_for(torch.device("cuda"), dtype), shape, dtype, "cuda", tolerance)


def test_a_cpu_gets_the_blocked_kernel():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert isinstance(kernel_for(torch.device("cpu"), dtype), Blocked)
