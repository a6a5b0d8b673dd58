"""The tiny fixture of the ports' tests, as HASS reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ports.hass import train as hass
from ports.hass.settings import HassSettings
from ports.training.data.batches import collate

ROUND_OFF = 3e-6
"""Of a tensor's largest element: float32 sums in another order; measured at most 5e-7 on these sizes."""


@pytest.fixture
def settings(fixture, tmp_path):
    """HASS settings for the fixture: float32, two samples a batch, natural order, no noise."""

    def make(**changes) -> HassSettings:
        values = {
            "basepath": str(fixture / "verifier"),
            "configpath": str(fixture / "draft_hass.json"),
            "tmpdir": fixture / "data_hass",
            "cpdir": tmp_path / "checkpoints",
            "bs": 2,
            "lr": 1e-3,
            "epoch": 0,
            "noise": False,
            "shuffle": False,
            "num_workers": 0,
            "mixed_precision": "no",
            "progress": False,
        }
        return HassSettings(**{**values, **changes})

    return make


@pytest.fixture
def flags(fixture, tmp_path):
    """The same as a command line."""
    values = {
        "basepath": fixture / "verifier",
        "configpath": fixture / "draft_hass.json",
        "tmpdir": fixture / "data_hass",
        "cpdir": tmp_path / "checkpoints",
        "bs": 2,
        "num_workers": 0,
        "epoch": 0,
    }

    def make(**changes) -> list[str]:
        pairs = {**values, **changes}
        return [word for name, value in pairs.items() for word in (f"--{name}", str(value))] + ["--no-progress"]

    return make


@pytest.fixture
def lively_draft(settings):
    """A draft whose weights are far from their initial state, so that every term shows in its logits."""

    def make(**changes):
        draft = hass.build(settings(**changes))
        enliven(draft)
        return draft

    return make


@torch.no_grad()
def enliven(draft) -> None:
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(draft.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if parameter.dim() == 1 else noise / parameter.shape[1] ** 0.5)


@pytest.fixture
def batch_of(settings):
    """The given samples of the fixture, padded to a batch."""

    def make(*indices: int, **changes):
        chosen = settings(**changes)
        dataset = hass.build_dataset(chosen, hass.build(chosen).config)
        return collate([dataset[index] for index in indices])

    return make


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
