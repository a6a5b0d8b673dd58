"""Path norms against derivatives known by hand."""

from __future__ import annotations

import pytest
import torch

from parity.prototypes.paths import path_norms


def test_norms_are_the_derivatives() -> None:
    first = torch.tensor([3.0, 4.0], requires_grad=True)
    second = first * 2
    losses = [(first**2).sum(), second.sum() * 5]
    norms = path_norms(losses, [first, second])
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(
        {"0.0": 10.0, "1.0": 10 * 2**0.5, "1.1": 5 * 2**0.5}
    )


def test_a_cut_path_is_zero() -> None:
    first = torch.ones(2, requires_grad=True)
    second = (first * 2).detach().requires_grad_()
    norms = path_norms([first.sum(), second.sum()], [first, second])
    assert norms["1.0"].item() == 0
    assert norms["1.1"].item() == pytest.approx(2**0.5)


def test_states_and_losses_without_a_graph_are_zero() -> None:
    state, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    norms = path_norms([plain.sum(), state.sum()], [plain, state])
    assert [norms[name].item() for name in ("0.0", "1.0", "1.1")] == pytest.approx([0, 0, 2**0.5])


def test_the_graph_is_left_for_the_backward() -> None:
    weight = torch.ones(2, requires_grad=True)
    state = weight * 3
    loss = (state**2).sum()
    path_norms([loss], [state])
    loss.backward()
    assert torch.equal(weight.grad, torch.full((2,), 18.0))
