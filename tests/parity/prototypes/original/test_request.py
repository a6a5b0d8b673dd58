from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parity.errors import InputError
from parity.prototypes.original import OriginalRequest

NEEDED = {"prototype": "/p", "fixture": "/f", "output": "/o", "case": "c"}


def test_a_request_survives_json() -> None:
    request = OriginalRequest(
        Path("/p"), Path("/f"), Path("/o"), "c", dtype="bf16ds", lr=3e-5, seed=4, initial_weights=Path("/w"), noise=True
    )
    assert OriginalRequest.from_json(request.to_json()) == request


def test_defaults_fill_what_is_not_given() -> None:
    request = OriginalRequest.from_json(json.dumps(NEEDED))
    assert (request.algorithm, request.dtype, request.threads, request.record) == ("eagle3", "fp32", 1, True)
    assert request.folder == Path("/o/c")
    assert request.data == Path("/f/data_eagle3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "learning_rate: found an unknown field"),
        ({"bs": "2"}, "bs: found '2', expected int"),
        ({"bs": True}, "bs: found True, expected int"),
        ({"bs": 0}, "bs: found 0, expected at least 1"),
        ({"lr": "fast"}, "lr: found 'fast', expected float"),
        ({"seed": 1.5}, "seed: found 1.5, expected int | None"),
        ({"noise": None}, "noise: found None, expected bool"),
        ({"fixture": 3}, "fixture: found 3, expected Path"),
        ({"algorithm": "medusa"}, "algorithm: found 'medusa', expected one of eagle3, hass"),
        ({"algorithm": "hass", "dtype": "bf16ds"}, "dtype: found 'bf16ds', expected one of fp32, bf16"),
        ({"max_optimizer_steps": 0}, "max_optimizer_steps: found 0, expected at least 1"),
        ({"case": "../up"}, "case: found '../up', expected a plain folder name"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        OriginalRequest.from_json(json.dumps({**NEEDED, **changes}))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"asked.json: {name}: found nothing"):
        OriginalRequest.from_json(json.dumps({k: v for k, v in NEEDED.items() if k != name}), "asked.json")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_something_else_than_an_object(text: str) -> None:
    with pytest.raises(InputError, match="a JSON object"):
        OriginalRequest.from_json(text)
