"""Verifiers of other makes: nested configs and weight names, tied heads, half precision, other shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ports.hass import train as hass

TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
)


@pytest.fixture
def weights(fixture) -> dict[str, torch.Tensor]:
    """The fixture's verifier, all shards together."""
    files = sorted((fixture / "verifier").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.fixture
def rewrite(fixture, tmp_path):
    """A verifier folder with other weights and perhaps another config."""

    def make(weights: dict, config: dict | None = None) -> str:
        folder = tmp_path / "rewritten"
        folder.mkdir()
        source = json.loads((fixture / "verifier" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(source if config is None else config))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return make


def test_a_lost_head_is_not_the_embedding(settings, fixture, rewrite, weights, refuses):
    """Speculators takes any verifier without a head for a tied one."""
    expected = "the head of a verifier whose embeddings are not tied"
    verifier = rewrite(headless(weights))
    with refuses(f"{verifier}/model.safetensors", "lm_head.weight", "missing", expected):
        hass.build(settings(basepath=verifier))
    index = fixture / "verifier" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"lm_head.weight"', '"lm_hexd.weight"'))
    with refuses(index, "lm_head.weight", "missing", expected):
        hass.build(settings())


def nested(config_file: Path) -> dict:
    """A Mistral text model inside a multimodal one."""
    text = json.loads(config_file.read_text())
    vision = {"model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {"model_type": "mistral", **{key: text[key] for key in TEXT_KEYS}},
        "vision_config": vision,
    }


@pytest.mark.parametrize("style", ["language_model.{}", "model.language_model.{}"])
def test_a_nested_mistral_verifier(settings, fixture, rewrite, weights, style):
    inner = {style.format(name): value for name, value in weights.items()}
    tower = {"vision_tower.patch_conv.weight": torch.zeros(8, 3)}
    verifier = rewrite({**inner, **tower}, nested(fixture / "verifier" / "config.json"))
    draft = hass.build(settings(basepath=verifier))
    assert torch.equal(draft.embed_tokens.weight, weights["model.embed_tokens.weight"])
    assert torch.equal(draft.lm_head.weight, weights["lm_head.weight"])
    assert draft.config.speculators_config.verifier.architectures == ["Mistral3ForConditionalGeneration"]


def headless(weights):
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def test_a_tied_verifier_speaks_through_its_embedding(settings, fixture, rewrite, weights):
    config = json.loads((fixture / "verifier" / "config.json").read_text())
    verifier = rewrite(headless(weights), {**config, "tie_word_embeddings": True})
    draft = hass.build(settings(basepath=verifier))
    assert torch.equal(draft.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_float16_verifier_is_read_as_float32(settings, rewrite, weights):
    draft = hass.build(settings(basepath=rewrite({name: value.half() for name, value in weights.items()})))
    assert draft.lm_head.weight.dtype == torch.float32
    assert torch.equal(draft.lm_head.weight, weights["lm_head.weight"].half().float())


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_weights_of_another_shape_are_refused(settings, rewrite, weights, refuses, name):
    verifier = rewrite({**weights, name: weights[name][:-1].clone()})
    with refuses(verifier, name.removeprefix("model."), "shape (60, 32)", "shape (61, 32)"):
        hass.build(settings(basepath=verifier))
