"""The tiny fixture of the ports' tests, as HASS reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROUND_OFF = 3e-6
"""Of a tensor's largest element: float32 sums in another order; measured at most 5e-7 on these sizes."""


@pytest.fixture
def port() -> str:
    return "hass"


@pytest.fixture
def two_layers(fixture) -> Path:
    """The draft config with two layers."""
    file = fixture / "draft_hass.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
    return file


@pytest.fixture
def agree():
    """``agree(got, expected)``: two dicts of tensors with the same names, equal to round-off, one by one."""

    def check(got: dict, expected: dict, of_largest: float = ROUND_OFF) -> None:
        assert got.keys() == expected.keys()
        assert expected
        for name, value in expected.items():
            largest = value.abs().max().item()
            assert largest > 0, name
            error = (got[name] - value).abs().max().item() / largest
            assert error <= of_largest, f"{name}: {error:.2e} of its largest element"

    return check


@pytest.fixture
def gradients():
    """The gradients of a module by name, taken away from it."""

    def take(module) -> dict:
        grads = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
        module.zero_grad(set_to_none=True)
        return grads

    return take
