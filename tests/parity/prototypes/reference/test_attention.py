"""The dense attention against its definition, one position at a time."""

import pytest
import torch

from parity.prototypes.reference.attention import ttt_attention
from tests.ports.training.test_attention import BOTH, Alignment, attend, by_hand, draw

PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize(("steps", "kv_heads"), [(1, 4), (2, 1), (3, 2), (5, 4), (5, 1), (9, 2)])
def test_dense_form_is_the_definition(steps, kv_heads, alignment):
    """Nine steps are more than the six positions."""
    inputs = draw((2, 4, kv_heads, 6, 5), steps)
    found = ttt_attention(
        inputs[0], inputs[1 : steps + 1], inputs[steps + 1 :], PADDED, alignment is Alignment.PROTOTYPE
    )
    wanted = attend(by_hand, inputs, alignment, PADDED)
    torch.testing.assert_close(found * PADDED[:, None, :, None], wanted, rtol=0, atol=1e-13)
