"""A HASS draft with lively weights, and inputs for it."""

from __future__ import annotations

import pytest
import torch

from ports.hass import train as hass
from tests.ports.conftest import enliven, settings_of


@pytest.fixture
def hass_draft(fixture, tmp_path):
    chosen = settings_of(fixture, "hass", cpdir=tmp_path, forward_num_total=3, ttt_alignment="chain")
    return enliven(hass.build(chosen))


@pytest.fixture
def batch(fixture):
    record = torch.load(fixture / "data_hass" / "data_2.ckpt", weights_only=True)
    return {
        "hidden_states": record["hidden_state"][None],
        "input_ids": record["input_ids"].roll(-1)[None],
        "ttt_steps": 3,
    }
