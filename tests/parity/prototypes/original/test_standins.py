from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

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
def test_plain_rotary_frequencies(config: Any) -> None:
    frequencies, factor = standins.plain_rope(config)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1]))
    assert factor == 1.0


@pytest.mark.parametrize(("noise", "shuffle"), [(True, False), (False, True)])
def test_data_are_arranged_and_the_rest_is_the_scripts(noise: bool, shuffle: bool) -> None:
    script: Any = ModuleType("script")
    script.datapath = ["a/data_10", "a/data_2", "a/data_1"]
    script.train_config = {"data_noise": True, "num_workers": 8, "lr": 1}
    script.DataLoader = lambda *positional, **named: (positional, named)
    standins.arrange_data(script, noise, shuffle)
    assert script.datapath == ["a/data_1", "a/data_2", "a/data_10"]
    assert script.train_config == {"data_noise": noise, "num_workers": 0, "lr": 1}
    loader = script.DataLoader("data", shuffle=True, pin_memory=True, bs=3)
    assert loader == (("data",), {"shuffle": shuffle, "pin_memory": False, "bs": 3})
