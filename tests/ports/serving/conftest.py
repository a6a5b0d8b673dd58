"""A HASS draft with lively weights."""

import pytest

from ports.hass import train as hass
from tests.ports.conftest import enliven, settings_of


@pytest.fixture
def hass_draft(fixture, tmp_path):
    chosen = settings_of(fixture, "hass", cpdir=tmp_path, forward_num_total=3, ttt_alignment="chain")
    return enliven(hass.build(chosen))
