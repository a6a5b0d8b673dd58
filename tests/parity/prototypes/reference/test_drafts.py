"""The two reference models: the same numbers whichever way they are computed."""

import itertools

import pytest
import torch

from parity.prototypes.reference.data import batches_of
from parity.prototypes.reference.loop import prepare


def unrolled(setup, **options):
    """A forward on the first batch and the gradients of all its losses."""
    weights = setup.weights()
    out = setup.forward(weights, next(batches_of(setup.case)), **options)
    torch.stack(list(out.backward)).sum().backward()
    return out, {name: weights[name].grad for name in setup.masters}


@pytest.fixture(params=["eagle3_fp32_k5", "hass_fp32_k4"])
def setup(request, cases):
    return prepare(cases[request.param], torch.float64)


def test_a_tap_changes_neither_forward_nor_gradients(setup):
    """Though keys and values are then projected once."""
    (again, gradients), (once, same) = unrolled(setup), unrolled(setup, tap=lambda *seen: None)
    for one, other in zip(again.steps, once.steps, strict=True):
        torch.testing.assert_close((one.logits, one.hidden), (other.logits, other.hidden), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, same, rtol=1e-9, atol=1e-12)


def test_every_step_follows_from_the_one_before_in_double_precision(setup):
    out, gradients = unrolled(setup)
    for before, after in itertools.pairwise(out.steps):
        assert torch.equal(after.hidden_in[:, 0], before.hidden_in[:, 0])
        assert torch.equal(after.hidden_in[:, 1:], before.hidden[:, :-1])
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    tensors = [out.target_p, *gradients.values(), *(step.logits for step in out.steps)]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    chain = unrolled(setup, own_position=False)[0]
    gaps = [float((a.logits - b.logits).detach().abs().max()) for a, b in zip(out.steps, chain.steps, strict=True)]
    assert max(gaps[:2]) < 1e-12
    assert min(gaps[2:]) > 1e-2
