"""Verifiers of every make: what is read from them, what is refused, and how they are known again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.fixtures.tokenizer import build_tokenizer
from ports.hass import train as hass
from ports.training.verifier import (
    SAMPLE,
    check_weights_present,
    full_head,
    open_tokenizer,
    tokenizer_files,
    tokenizer_fingerprint,
    verifier_config,
    verifier_fingerprint,
)
from tests.ports.conftest import settings_of

INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(fixture):
    return fixture / "verifier"


def test_the_config_of_a_verifier(folder, tmp_path):
    from transformers import LlavaConfig

    config = verifier_config(str(folder))
    assert (config.hidden_size, config.vocab_size, config.num_hidden_layers) == (32, 61, 8)
    LlavaConfig().save_pretrained(tmp_path)
    assert verifier_config(str(tmp_path)).model_type == "llama"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nothing"}', "\x00", None])
def test_a_config_that_cannot_be_read_is_refused(folder, refuses, content):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    expected = "a Hugging Face model directory" if content is None else "a model directory or hub id"
    with refuses(folder, "basepath", "no config.json" if content is None else "", expected):
        verifier_config(str(folder))


def test_what_is_on_the_hub_is_not_looked_for_on_the_disk(refuses):
    check_weights_present("org/hub-id")
    with refuses("nobody/nothing", "basepath", "", "a model directory or hub id"):
        verifier_config("nobody/nothing")


MAP = "a non-empty object that maps tensors to shards"
UNTIED = "the head of a verifier whose embeddings are not tied"
MISSING = [
    (INDEX, None, "", INDEX, "missing", "an index (or a single model.safetensors)"),
    (SHARD, None, INDEX, "weight_map", f"{SHARD}, which does not exist", "shards that lie beside the index"),
    (INDEX, "{", INDEX, "weight_map", "Expecting property name", MAP),
    (INDEX, "{}", INDEX, "weight_map", "None", MAP),
    (INDEX, "3", INDEX, "weight_map", "None", MAP),
    (INDEX, '{"weight_map": {}}', INDEX, "weight_map", "{}", MAP),
    (INDEX, '{"weight_map": []}', INDEX, "weight_map", "[]", MAP),
    (INDEX, '{"weight_map": {"a": "../b"}}', INDEX, "weight_map a", "'../b'", "the name of a file beside the index"),
    (INDEX, f'{{"weight_map": {{"a": "{SHARD}"}}}}', INDEX, HEAD, "missing", UNTIED),
]


@pytest.mark.parametrize(("file", "content", "named", "field", "found", "expected"), MISSING)
def test_weights_that_are_not_there_are_refused(folder, refuses, file, content, named, field, found, expected):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with refuses(folder / named, field, found, expected):
        check_weights_present(str(folder))


def test_tokenizer_files_are_those_a_tokenizer_is_read_from(folder, refuses):
    assert tokenizer_files(str(folder)) == []
    with refuses(folder, "tokenizer", "", "the verifier's tokenizer files"):
        open_tokenizer(str(folder))
    names = ["chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in [*names, "notes.txt"]:
        (folder / name).write_text(name)
    (folder / "tokenizer_cache").mkdir()
    assert [path.name for path in tokenizer_files(str(folder))] == names


@pytest.fixture
def weights(folder) -> dict[str, torch.Tensor]:
    """The fixture's verifier, all shards together."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture
def built(fixture, folder, tmp_path):
    """A HASS draft for a verifier with other weights, and perhaps another config."""

    def build(weights, config=lambda source: source):
        place = tmp_path / "rewritten"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config(json.loads((folder / "config.json").read_text()))))
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        return hass.build(settings_of(fixture, "hass", basepath=str(place), cpdir=tmp_path / "checkpoints"))

    return build


def nested(text):
    """A Mistral text model inside a multimodal one."""
    keys = ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "head_dim", "num_attention_heads")
    kept = {key: text[key] for key in (*keys, "num_key_value_heads", "max_position_embeddings")}
    return {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {"model_type": "mistral", **kept},
        "vision_config": {"model_type": "pixtral", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    }


@pytest.mark.parametrize("style", ["language_model.{}", "model.language_model.{}"])
def test_a_nested_mistral_verifier(built, weights, style):
    inner = {style.format(name): value for name, value in weights.items()}
    draft = built({**inner, "vision_tower.patch_conv.weight": torch.zeros(8, 3)}, nested)
    assert torch.equal(draft.embed_tokens.weight, weights[EMBEDDING])
    assert torch.equal(draft.lm_head.weight, weights[HEAD])
    assert draft.config.speculators_config.verifier.architectures == ["Mistral3ForConditionalGeneration"]


def test_a_head_is_the_embedding_where_the_two_are_tied_and_only_there(built, weights, refuses, tmp_path):
    """Speculators takes any verifier without a head for a tied one."""
    del weights[HEAD]
    draft = built(weights, lambda source: {**source, "tie_word_embeddings": True})
    assert torch.equal(draft.lm_head.weight, weights[EMBEDDING])
    assert torch.equal(full_head(str(tmp_path / "rewritten")), weights[EMBEDDING])
    (tmp_path / "rewritten").rename(tmp_path / "tied")
    with refuses(f"{tmp_path}/rewritten/model.safetensors", HEAD, "missing", UNTIED):
        built(weights)


def test_a_float16_verifier_is_read_as_float32(built, weights, tmp_path):
    draft = built({name: value.half() for name, value in weights.items()})
    assert draft.lm_head.weight.dtype == torch.float32
    assert torch.equal(draft.lm_head.weight, weights[HEAD].half().float())
    assert torch.equal(full_head(str(tmp_path / "rewritten")), draft.lm_head.weight)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_weights_of_another_shape_are_refused(built, weights, refuses, tmp_path, name):
    with refuses(tmp_path / "rewritten", name.removeprefix("model."), "shape (60, 32)", "shape (61, 32)"):
        built({**weights, name: weights[name][:-1].clone()})


def test_a_verifier_is_known_by_its_tensors(tmp_path):
    """A sample of them is read: the first bytes, those in the middle and the last."""
    plain = torch.zeros(40, 20)
    assert plain.numel() * 4 > 3 * SAMPLE

    def print_of(shards=1, **changes):
        tensors = list(({f"t{i}": torch.full((40, 20), i) for i in range(4)} | changes).items())
        directory = tmp_path / f"verifier{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        for shard in range(shards):
            save_file(dict(tensors[shard::shards]), directory / f"m{shard}.safetensors")
        return verifier_fingerprint(str(directory))

    others = [{"t1": plain.clone()} for _ in range(3)]
    for change, element in zip(others, (0, 400, 799)):
        change["t1"].view(-1)[element] += 1
    others += [{"t1": torch.zeros(20, 40)}, {"t1": plain, "t4": torch.zeros(1)}, {"t1": plain.half()}]
    assert print_of(t1=plain) == print_of(t1=plain, shards=3)
    assert len({print_of(t1=plain), *(print_of(**change) for change in others)}) == 7


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b'\x0a\0\0\0\0\0\0\0{"a": {}}   ', None])
def test_what_is_no_safetensors_has_no_fingerprint(tmp_path, refuses, content):
    found, expected = ("no *.safetensors", "a verifier's weights") if content is None else ("", "whole safetensors")
    if content is not None:
        (tmp_path / "m0.safetensors").write_bytes(content)
    with refuses(tmp_path, "weights", found, expected):
        verifier_fingerprint(str(tmp_path))


def test_a_tokenizer_is_known_by_what_it_does(tmp_path):
    one, other = (open_tokenizer(str(build_tokenizer(tmp_path / name))) for name in "ab")
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    other.chat_template += " "
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
