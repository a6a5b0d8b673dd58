"""What a draft holds whose verifier nobody names; that a checkpoint opens is in ``tests/ports/test_fresh.py``."""

import pytest

from ports.hass import HassDraftModel, HassSpeculatorConfig


@pytest.fixture
def port():
    return "hass"


def test_without_a_verifier_its_weights_are_nan(lively_draft):
    layer = lively_draft().config.transformer_layer_config
    detached = HassDraftModel(HassSpeculatorConfig(transformer_layer_config=layer))
    detached.load_verifier_weights()
    assert detached.embed_tokens.weight.isnan().all()
    assert detached.lm_head.weight.isnan().all()
    assert detached.fc.weight.isfinite().all()
