"""The tiny fixture of the ports' tests, as HASS reads it."""

import pytest


@pytest.fixture
def port() -> str:
    return "hass"
