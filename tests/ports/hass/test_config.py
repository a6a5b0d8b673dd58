"""From whatever names a draft to its config, and what is refused."""

from __future__ import annotations

import json

import pytest

from ports.hass import HassSpeculatorConfig
from ports.hass.config import load_draft_config
from ports.training.alignment import Alignment
from ports.training.saving import save_draft


def edited(file, **changes) -> str:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(file)


@pytest.fixture
def load(fixture):
    def make(configpath=fixture / "draft_hass.json", alignment=Alignment.PROTOTYPE):
        return load_draft_config(str(configpath), str(fixture / "verifier"), 3, alignment)

    return make


def test_the_prototypes_json(load):
    config = load()
    assert isinstance(config, HassSpeculatorConfig)
    assert config.transformer_layer_config.head_dim == 12
    assert config.transformer_layer_config.rope_parameters["factor"] == 4.0


def test_a_checkpoint_is_a_config_too_and_the_flag_says_the_alignment(load, lively_draft, tmp_path):
    folder = save_draft(lively_draft(), tmp_path / "draft")
    config = load(folder, Alignment.CHAIN)
    assert config.ttt_alignment == "chain"
    assert config.transformer_layer_config.to_dict() == load().transformer_layer_config.to_dict()


@pytest.mark.parametrize(
    ("key", "value", "found", "expected"),
    [
        ("draft_vocab_size", 23, "an unknown key", "keys of a llama config"),
        ("model_type", "mistral", "mistral", "llama"),
        ("hidden_size", 36, "36", "32, the verifier's"),
        ("vocab_size", 62, "62", "61, the verifier's"),
        ("num_hidden_layers", 2, "2", "--ttt_alignment chain"),
        ("attention_dropout", 0.1, "0.1", "0.0"),
        ("hidden_act", "sliu", "'sliu'", "one of"),
        ("speculators_model_type", "eagle3", "eagle3", "hass"),
    ],
)
def test_refused(load, fixture, refuses, key, value, found, expected):
    file = edited(fixture / "draft_hass.json", **{key: value})
    with refuses(file, key, found, expected):
        load(file)


def test_a_native_config_with_a_broken_layer_is_refused(load, fixture, refuses):
    native = {
        "speculators_model_type": "hass",
        "transformer_layer_config": {"model_type": "llama", "num_hidden_layers": []},
    }
    file = fixture / "draft_hass.json"
    file.write_text(json.dumps(native))
    with refuses(file, "config", "", "a Speculators hass config"):
        load(file)


@pytest.mark.parametrize("kind", ["qwen3", "gpt_oss", "llama4_text"])
def test_a_native_config_with_another_layer_is_refused(load, fixture, refuses, kind):
    file = fixture / "draft_hass.json"
    file.write_text(json.dumps({"speculators_model_type": "hass", "transformer_layer_config": {"model_type": kind}}))
    with refuses(file, "transformer_layer_config.model_type", kind, "llama: Speculators holds no such draft"):
        load(file)


def test_several_layers_in_chain_alignment(load, two_layers):
    assert load(two_layers, Alignment.CHAIN).transformer_layer_config.num_hidden_layers == 2


def test_the_config_itself_refuses_several_layers_in_prototype_alignment(load, two_layers):
    layer = load(two_layers, Alignment.CHAIN).transformer_layer_config
    with pytest.raises(ValueError, match="num_hidden_layers: found 2, expected 1"):
        HassSpeculatorConfig(transformer_layer_config=layer, ttt_alignment="prototype")
    assert HassSpeculatorConfig(transformer_layer_config=layer).ttt_alignment == "chain"
