"""The fast TTT attention against the dense one, output and every gradient, and what the dense one cannot do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ports.training import attention, flash
from ports.training.alignment import Alignment
from ports.training.attention import (
    AttentionImplementation,
    attention_line,
    auto_ttt_attention,
    fast_ttt_attention,
    ttt_attention,
)
from ports.training.flash_kernels import ATEN, Causal, CpuFlash, CudaEfficient, CudaFlash, CudaFlashPacked
from tests.ports.training.test_attention import BOTH, draw, errors, numbered, right_padding, run

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


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_and_bfloat16_err_like_the_dense_form(shape, step, alignment):
    inputs, mask = draw(shape, step + 1, torch.bfloat16), right_padding(shape[0], shape[3])
    grad = torch.randn_like(inputs[0])
    exact = run(ttt_attention, inputs, grad, alignment, mask, torch.float64)
    scale = max(value.norm() for value in exact)
    for dtype, least in ((torch.float32, 5e-7), (torch.bfloat16, 1e-6)):
        found, dense = (
            [
                float((a.double() - b).norm() / scale)
                for a, b in zip(run(form, inputs, grad, alignment, mask, dtype), exact)
            ]
            for form in (fast_ttt_attention, ttt_attention)
        )
        assert max(found) <= max(least, 1.25 * max(dense)), (dtype, found, dense)


@pytest.mark.parametrize("row", [[0, 0, 1, 1, 1], [1, 0, 1, 1, 1]])
@pytest.mark.parametrize("alignment", BOTH)
def test_one_row_with_other_padding_is_dense_with_a_word_or_refused(alignment, row):
    query, *states = draw((2, 2, 1, 5, 4), 3)
    arguments = (query, tuple(states[:3]), tuple(states[3:]), torch.tensor([[1, 1, 1, 0, 0], row]), 0.5, alignment)
    with pytest.warns(UserWarning, match=r"dense, in O\(T\^2\) memory: padding before or between"):
        assert torch.equal(auto_ttt_attention(*arguments), ttt_attention(*arguments))
    with pytest.raises(ValueError, match=r"found fast: padding before or between .* expected auto or eager"):
        fast_ttt_attention(*arguments)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 5), torch.tensor([[1, 1, 2, 2, 2]])])
def test_a_device_without_a_kernel_takes_the_dense_form(monkeypatch, mask):
    query, *states = draw((1, 2, 1, 5, 4), 3)
    arguments = (query, tuple(states[:3]), tuple(states[3:]))
    fast = fast_ttt_attention(*arguments, mask, 0.5, Alignment.CHAIN)
    monkeypatch.setattr(attention, "kernel_for", lambda *_: None)
    with pytest.warns(UserWarning, match="torch has no kernel for float64 on this cpu device"):
        dense = auto_ttt_attention(*arguments, mask, 0.5, Alignment.CHAIN)
    with pytest.raises(ValueError, match="found fast: torch has no kernel"):
        fast_ttt_attention(*arguments, mask, 0.5, Alignment.CHAIN)
    own = torch.ones(1, 5) if mask is None else mask
    assert torch.equal(dense, ttt_attention(*arguments, own, 0.5, Alignment.CHAIN))
    torch.testing.assert_close(dense, fast)


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


PACKED = (3, 1, 9)
ALONE = [(CpuFlash(), torch.float32), (CudaFlash(), torch.bfloat16), (CudaEfficient(), torch.float32)]
CALLS = [(*kernel, shape) for kernel in ALONE for shape in SHAPES]
CALLS.append((CudaFlashPacked(PACKED), torch.bfloat16, (1, 4, 2, sum(PACKED), 12)))


@pytest.mark.parametrize(("kernel", "dtype", "shape"), CALLS)
def test_the_calls_of_the_kernels_fit_this_torch(kernel, dtype, shape):
    query, key, value = (states.to("meta", dtype) for states in draw(shape, 1))
    found = kernel.forward(query, key, value, 0.5)
    assert (found.out.shape, found.lse.shape) == (query.shape, query.shape[:3])
    gradients = kernel.backward(torch.empty_like(query), query, key, value, found, 0.5)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


class Varlen(TorchDispatchMode):
    """Does on the CPU what FlashAttention-2 does with the borders of documents, which it is handed as on a card."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is ATEN._flash_attention_forward.default:
            *states, ends, other = args[:5]
            assert torch.equal(ends, other)
            return self.forward(states, ends, args[5:7], kwargs["scale"])
        if function is ATEN._flash_attention_backward.default:
            *states, lse, ends, other = args[:8]
            assert torch.equal(ends, other)
            return self.backward(states, lse, ends, kwargs["scale"])
        return function(*args, **(kwargs or {}))

    def forward(self, states, ends, longest, scale):
        lengths = ends.diff().tolist()
        assert longest == (max(lengths), max(lengths))
        rows = zip(*(each.split(lengths) for each in states))
        found = [CpuFlash().forward(*(each.transpose(0, 1)[None] for each in row), scale) for row in rows]
        out = torch.cat([each.out[0].transpose(0, 1) for each in found])
        return out, torch.cat([each.lse[0] for each in found], dim=1), *(torch.empty(0) for _ in range(3))

    def backward(self, states, lse, ends, scale):
        lengths = ends.diff().tolist()
        rows = zip(*(each.split(lengths) for each in states), lse.split(lengths, dim=1))
        found = []
        for *row, part in rows:
            grad, query, key, value, out = (each.transpose(0, 1)[None] for each in row)
            found.append(CpuFlash().backward(grad, query, key, value, Causal(out, part[None]), scale))
        return tuple(torch.cat([each[0].transpose(0, 1) for each in parts]) for parts in zip(*found))


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("lengths", [(4, 3, 9), (1, 1, 2), (20, 2)])
def test_the_borders_of_documents_are_what_a_card_is_handed(lengths, step, alignment, monkeypatch):
    """12 entries a head, which the kernel takes as 16."""
    inputs = draw((1, 4, 2, sum(lengths), 12), step + 1)
    grad = torch.randn_like(inputs[0])
    wanted = run(fast_ttt_attention, inputs, grad, alignment, numbered(lengths))
    largest = max(value.abs().max() for value in wanted)
    for module in (attention, flash):
        monkeypatch.setattr(module, "kernel_for", lambda device, dtype, left=(): CudaFlashPacked(left))
    with Varlen():
        found = run(fast_ttt_attention, inputs, grad, alignment, numbered(lengths))
    assert max(errors(found, wanted, floor=largest)) <= 1e-14


CARDS = {
    "mps": ((), None, "mps", torch.float32, "float32 on this mps device"),
    "xpu": ((), None, "xpu", torch.bfloat16, "bfloat16 on this xpu device"),
    "ROCm": ((9, 0), "6.2", "cuda", torch.bfloat16, "bfloat16 on this ROCm device"),
    "V100": ((7, 0), None, "cuda", torch.bfloat16, "bfloat16 on this cuda device"),
    "V100, whole": ((7, 0), None, "cuda", torch.float32, ""),
    "H100": ((9, 0), None, "cuda", torch.bfloat16, ""),
    "cpu": ((), None, "cpu", torch.bfloat16, ""),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_run_says_which_attention_it_takes(monkeypatch, refuses, card):
    """Dense where torch has no kernel, unless the fast one is asked for by name."""
    capability, hip, kind, dtype, missing = CARDS[card]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    device = torch.device(kind)
    said = f"dense, in O(T^2) memory: torch has no kernel for {missing}" if missing else "fast, in O(T) memory"
    assert attention_line(AttentionImplementation.AUTO, device, dtype) == f"attention: {said}"
    assert "as asked for" in attention_line(AttentionImplementation.EAGER, device, dtype)
    if not missing:
        assert attention_line(AttentionImplementation.FAST, device, dtype) == f"attention: {said}"
        return
    with refuses("command line", "--attn-implementation", f"fast: torch has no kernel for {missing}", "auto or eager"):
        attention_line(AttentionImplementation.FAST, device, dtype)


def test_a_run_without_a_kernel_takes_the_dense_one_or_none(start_run, tmp_path, monkeypatch, capsys, refuses):
    start_run("hass", tmp_path / "a")
    assert "attention: fast, in O(T) memory\n" in capsys.readouterr().out
    monkeypatch.setattr(attention, "kernel_for", lambda *_: None)
    start_run("hass", tmp_path / "b")
    assert "attention: dense, in O(T^2) memory: torch has no kernel for float32" in capsys.readouterr().out
    with refuses("command line", "--attn-implementation", "fast: torch has no kernel for float32", "auto or eager"):
        start_run("hass", tmp_path / "c", attn_implementation="fast")
    assert not (tmp_path / "c").exists()
