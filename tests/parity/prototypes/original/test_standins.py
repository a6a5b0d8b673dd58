from types import SimpleNamespace

import pytest
import torch

from parity.prototypes.original import standins


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(rope_theta=100.0, head_dim=4),
        SimpleNamespace(rope_parameters={"rope_theta": 100.0}, hidden_size=8, num_attention_heads=2),
    ],
)
def test_plain_rotary_frequencies(config):
    frequencies, factor = standins.plain_rope(config)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1]))
    assert factor == 1.0
