"""Layers that TTT attention would train wrongly, in configs that no reader of numbers has looked at before."""

from types import SimpleNamespace

import pytest

from ports.training.alignment import Alignment
from ports.training.draft_config import check_trainable

LAYER = {"num_hidden_layers": 1, "attention_dropout": 0.0, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_layer_that_trains():
    check_trainable("config.json", SimpleNamespace(**LAYER), Alignment.PROTOTYPE)


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_heads_that_cannot_be_shared(refuses, heads):
    layer = SimpleNamespace(**{**LAYER, "num_key_value_heads": heads})
    found = f"4 heads, {heads} key/value heads"
    with refuses("config.json", "num_key_value_heads", found, "a divisor of num_attention_heads"):
        check_trainable("config.json", layer, Alignment.PROTOTYPE)
