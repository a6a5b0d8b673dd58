"""Every kernel against a softmax written out, and its backward with the log-sum-exp of a larger softmax."""

import pytest
import torch

from ports.training.flash_kernels import Causal, CpuFlash, CudaEfficient, CudaFlash, kernel_for

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


TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_the_kernels(shape, dtype, device):
    kernel = kernel_for(torch.device(device), dtype)
    if kernel is None:
        pytest.skip("torch ships no kernel for this dtype on this device")
    check(kernel, shape, dtype, device, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("kernel", "dtype"), [(CpuFlash, torch.float32), (CudaFlash, torch.bfloat16), (CudaEfficient, torch.float32)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_calls_of_the_kernels_fit_this_torch(kernel, dtype, shape):
    query, key, value = (states.detach().to(dtype) for states in draw(shape, device="meta"))
    found = kernel().forward(query, key, value, 0.5)
    assert found.out.shape == query.shape
    assert found.lse.shape == query.shape[:3]
    later = Causal(found.out, found.lse[:, :, :], found.extra)
    gradients = kernel().backward(torch.empty_like(query), query, key, value, later, 0.5)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]
