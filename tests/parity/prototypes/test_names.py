"""Prototypes' and Speculators' names stand for the same parameters, one for one."""

from __future__ import annotations

import pytest

from parity.files import read_tensors
from parity.prototypes.case import Case
from parity.prototypes.names import TO_NATIVE, TO_PROTOTYPE

CASES = {"eagle3": "eagle3_fp32_k3", "hass": "hass_fp32_k3"}


def test_both_directions_know_the_same_algorithms() -> None:
    assert TO_NATIVE.keys() == TO_PROTOTYPE.keys() == CASES.keys()


@pytest.mark.parametrize("algorithm", CASES)
def test_names_map_one_to_one(algorithm: str, cases: dict[str, Case]) -> None:
    stored = read_tensors(cases[CASES[algorithm]].initial)
    names = {name[5:] for name in stored if name.startswith("init.")}
    native = {TO_NATIVE[algorithm](name) for name in names}
    assert len(native) == len(names) > 10
    assert {TO_PROTOTYPE[algorithm](name) for name in native} == names


def test_what_eagle3_renames() -> None:
    to_native = TO_NATIVE["eagle3"]
    assert to_native("lm_head_layernorm.weight") == "norm.weight"
    assert to_native("hidden_norm.weight") == "layers.0.hidden_norm.weight"
    assert to_native("fc.weight") == "fc.weight"
