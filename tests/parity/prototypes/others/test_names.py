"""Shared weights under the other originals' names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from parity.errors import InputError
from parity.prototypes.case import TO_NATIVE
from parity.prototypes.others import OTHERS
from parity.prototypes.others.names import LACKING, give_weights, gradients, to_native, to_other
from parity.prototypes.reference.loop import prepare

FILE = Path("initial.safetensors")


def hass_like() -> nn.Module:
    """One parameter that is shared and one that the original alone has."""
    model = nn.Module()
    model.fc = nn.Linear(2, 3)
    return model


@pytest.mark.parametrize("original", list(OTHERS))
def test_every_prototype_parameter_has_a_place_or_is_named_as_lacking(original: str, cases) -> None:
    setup = prepare(cases[f"{OTHERS[original].algorithm}_fp32_k3"])
    names = [*setup.masters, *setup.frozen]
    assert len(names) > 10
    kept = [name for name in names if name not in LACKING[original]]
    assert len(kept) == len(names) - len(LACKING[original])
    assert [to_native(original, to_other(original, name)) for name in kept] == kept
    assert TO_NATIVE[OTHERS[original].algorithm]("hidden_norm.weight") not in ("", None)


def test_eagle_calls_its_layer_midlayer() -> None:
    assert to_other("eagle", "layers.0.hidden_norm.weight") == "midlayer.hidden_norm.weight"
    assert to_other("hass", "layers.0.mlp.up_proj.weight") == "layers.0.mlp.up_proj.weight"


def test_weights_arrive_and_what_is_alone_starts_as_zeros() -> None:
    model, weight = hass_like(), torch.arange(6.0).reshape(3, 2)
    give_weights("hass", model, {"fc.weight": weight, LACKING["hass"][0]: torch.ones(3)}, FILE)
    assert torch.equal(model.fc.weight, weight)
    assert torch.equal(model.fc.bias, torch.zeros(3))
    model.fc(torch.ones(2)).sum().backward()
    assert set(gradients("hass", model)) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({}, r"init\.\*: found unknown \[\], missing \['fc\.weight'\]"),
        ({"fc.weight": torch.ones(3, 2), "extra": torch.ones(1)}, r"unknown \['extra'\], missing \[\]"),
        ({"fc.weight": torch.ones(2, 3)}, r"init\.fc\.weight: found \(2, 3\), expected \(3, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(shared: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        give_weights("hass", hass_like(), shared, FILE)
