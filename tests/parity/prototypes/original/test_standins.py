from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from parity.prototypes.original import standins


def test_natural_order() -> None:
    assert sorted(["a/data_10", "a/data_2", "a/data_1"], key=standins.natural_key)[1] == "a/data_2"


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


def test_bfloat16_reads_as_float32_and_noise_is_heard() -> None:
    script, drawn = ModuleType("script"), []
    standins.read_bfloat16_as_float32([script])
    standins.watch_noise(script, drawn.append)
    names: Any = script
    assert names.torch.bfloat16 is torch.float32
    assert names.torch.nn is torch.nn
    assert names.torch.rand_like(torch.zeros(2)) is drawn[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_loader_keeps_its_other_arguments(shuffle: bool) -> None:
    script = ModuleType("script")
    script.__dict__["DataLoader"] = lambda *positional, **named: (positional, named)
    standins.change_loader(script, shuffle)
    names: Any = script
    given = names.DataLoader("data", shuffle=True, pin_memory=True, bs=3)
    assert given == (("data",), {"shuffle": shuffle, "pin_memory": False, "bs": 3})


def test_a_model_with_a_module_is_not_wrapped() -> None:
    inner = torch.nn.Linear(1, 1)
    wrapped: Any = standins.wrap_model(inner)
    assert wrapped.module is inner
    assert standins.wrap_model(wrapped) is wrapped
