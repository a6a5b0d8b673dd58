"""Layers that TTT attention would train wrongly, in configs that no reader of numbers has looked at before."""

from types import SimpleNamespace

import pytest

from ports.training.alignment import Alignment
from ports.training.draft_config import check_sizes, check_trainable

LAYER = {"num_hidden_layers": 1, "attention_dropout": 0.0, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_layer_that_trains():
    check_trainable("config.json", SimpleNamespace(**LAYER), Alignment.PROTOTYPE)


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_heads_that_cannot_be_shared(refuses, heads):
    layer = SimpleNamespace(**{**LAYER, "num_key_value_heads": heads})
    found = f"4 heads, {heads} key/value heads"
    with refuses("config.json", "num_key_value_heads", found, "a divisor of num_attention_heads"):
        check_trainable("config.json", layer, Alignment.PROTOTYPE)


@pytest.mark.parametrize(("own", "warned"), [(511, True), (512, False), (1024, False)])
def test_fewer_positions_than_the_verifier_has_are_said(recwarn, own, warned):
    sizes = {"hidden_size": 8, "vocab_size": 16}
    layer, verifier = (SimpleNamespace(**sizes, max_position_embeddings=count) for count in (own, 512))
    check_sizes("config.json", layer, verifier)
    said = "max_position_embeddings: found 511, the verifier has 512"
    assert [said in str(warning.message) for warning in recwarn] == [True] * warned
