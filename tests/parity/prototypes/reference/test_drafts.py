"""The two reference models: the same numbers whichever way they are computed."""

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
