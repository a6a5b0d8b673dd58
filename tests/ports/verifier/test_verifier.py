"""Verifiers of every make: what is read from them, what is refused, and how they are known again."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.fixtures.tokenizer import build_tokenizer
from ports.hass import train as hass
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import SAMPLE, verifier_fingerprint
from ports.verifier.tokenizer import open_tokenizer, tokenizer_files, tokenizer_fingerprint
from ports.verifier.weights import check_weights_present, full_head
from tests.ports.conftest import TRAIN, settings_of

INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(fixture):
    return fixture / "verifier"


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "nothing"}', None])
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


UNTIED = "the head of a verifier whose embeddings are not tied"
MISSING = [
    (INDEX, None, "", "weights", "No such file", "whole safetensors"),
    (INDEX, "{", INDEX, "weight_map", "Expecting property name", "an object that maps tensors to shards"),
    (INDEX, "{}", "", "weights", "no entry 'weight_map'", "whole safetensors"),
    (INDEX, '{"weight_map": [1]}', "", "weights", "", "whole safetensors"),
    (INDEX, f'{{"weight_map": {{"a": "{SHARD}"}}}}', "", HEAD, "missing", UNTIED),
]


@pytest.mark.parametrize(("file", "content", "named", "field", "found", "expected"), MISSING)
def test_weights_that_are_not_there_are_refused(folder, refuses, file, content, named, field, found, expected):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with refuses(folder / named, field, found, expected):
        check_weights_present(str(folder))


def to_a_fifo(folder):
    os.mkfifo(folder / "fifo")
    (folder / INDEX).write_text((folder / INDEX).read_text().replace(SHARD, "fifo"))


SHARDS = [
    to_a_fifo,
    lambda folder: (folder / SHARD).unlink(),
    lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-9]),
    lambda folder: (folder / INDEX).write_text((folder / INDEX).read_text().replace(SHARD, "../../b")),
]


@pytest.mark.parametrize("spoil", SHARDS)
def test_a_shard_that_cannot_be_read_is_refused(fixture, folder, refuses, tmp_path, algorithm, spoil):
    spoil(folder)
    with refuses(folder, "weights", "", "regular file" if spoil is to_a_fifo else "whole safetensors"):
        TRAIN[algorithm][0].build(settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints"))


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


def test_a_head_is_the_embedding_where_the_two_are_tied_and_only_there(built, weights, refuses, tmp_path):
    """Speculators takes any verifier without a head for a tied one."""
    del weights[HEAD]
    draft = built(weights, lambda source: {**source, "tie_word_embeddings": True})
    assert torch.equal(draft.lm_head.weight, weights[EMBEDDING])
    assert torch.equal(full_head(str(tmp_path / "rewritten")), weights[EMBEDDING])
    (tmp_path / "rewritten").rename(tmp_path / "tied")
    with refuses(tmp_path / "rewritten", HEAD, "missing", UNTIED):
        built(weights)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_weights_of_another_shape_are_refused(built, weights, refuses, tmp_path, name):
    with refuses(tmp_path / "rewritten", "weights", name.removeprefix("model."), "in the config's sizes"):
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


@pytest.mark.parametrize("content", [b"", b"\2\0\0\0\0\0\0\0[]", None])
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
