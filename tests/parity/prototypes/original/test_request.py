"""Requests: they survive JSON, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parity.errors import InputError
from parity.prototypes.original import OriginalRequest

NEEDED: dict[str, Any] = {"prototype": "/p", "fixture": "/f", "output": "/o", "case": "one"}


def test_a_request_survives_json() -> None:
    request = OriginalRequest(
        prototype=Path("/p"), fixture=Path("/f"), output=Path("/o"), case="one", algorithm="hass", dtype="bf16", seed=3
    )
    assert OriginalRequest.from_json(request.model_dump_json()) == request
    assert OriginalRequest.from_json(json.dumps(NEEDED)).forward_num_total == 3
    assert request.folder == Path("/o/one")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": 1}, "learning_rate"),
        ({"bs": "2"}, "bs"),
        ({"bs": True}, "bs"),
        ({"bs": 0}, "bs"),
        ({"lr": "fast"}, "lr"),
        ({"seed": 1.5}, "seed"),
        ({"noise": None}, "noise"),
        ({"fixture": 3}, "fixture"),
        ({"algorithm": "medusa"}, "algorithm"),
        ({"algorithm": "hass", "dtype": "bf16ds"}, "dtype"),
        ({"max_optimizer_steps": 0}, "max_optimizer_steps"),
        ({"case": "../up"}, "case"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"file\.json: {field}: found"):
        OriginalRequest.from_json(json.dumps({**NEEDED, **changes}), "file.json")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found nothing"):
        OriginalRequest.from_json(json.dumps({key: value for key, value in NEEDED.items() if key != name}))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_something_else_than_an_object(text: str) -> None:
    with pytest.raises(InputError):
        OriginalRequest.from_json(text)
