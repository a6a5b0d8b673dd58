"""A HASS draft with lively weights, and inputs for it."""

from __future__ import annotations

import pytest
import torch

from ports.hass import train as hass
from ports.hass.settings import HassSettings
from tests.ports.conftest import enliven


@pytest.fixture
def hass_draft(settings, fixture):
    shared = settings(forward_num_total=3).model_dump(include={"basepath", "cpdir", "bs", "forward_num_total"})
    own = {"configpath": str(fixture / "draft_hass.json"), "tmpdir": fixture / "data_hass", "ttt_alignment": "chain"}
    return enliven(hass.build(HassSettings(**{**shared, **own})))


@pytest.fixture
def batch(fixture):
    record = torch.load(fixture / "data_hass" / "data_2.ckpt", weights_only=True)
    return {
        "hidden_states": record["hidden_state"][None],
        "input_ids": record["input_ids"].roll(-1)[None],
        "ttt_steps": 3,
    }
