"""Verifiers of every make: what is read from them, what is refused, and how they are known again."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.fixtures.tokenizer import build_tokenizer
from ports.hass import train as hass
from ports.verifier import fingerprint
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import cache_directory, verifier_fingerprint
from ports.verifier.logits import VerifierHead
from ports.verifier.tokenizer import open_tokenizer, tokenizer_files, tokenizer_fingerprint
from ports.verifier.weights import check_weights_present
from tests.ports.conftest import TRAIN, edit, settings_of

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
    with refuses(folder, "verifier", "no config.json" if content is None else "", expected):
        verifier_config(str(folder))


def test_what_is_on_the_hub_is_not_looked_for_on_the_disk(refuses):
    check_weights_present("org/hub-id")
    with refuses("nobody/nothing", "verifier", "", "a model directory or hub id"):
        verifier_config("nobody/nothing")


UNTIED = "the head of a verifier whose embeddings are not tied"
MISSING = [
    (INDEX, None, "", "weights", "no model.safetensors", "a verifier's weights"),
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
]


@pytest.mark.parametrize("spoil", SHARDS)
def test_a_shard_that_cannot_be_read_is_refused(fixture, folder, refuses, tmp_path, algorithm, spoil):
    spoil(folder)
    with refuses(folder, "weights", "", "regular file" if spoil is to_a_fifo else "whole safetensors"):
        TRAIN[algorithm][0].build(settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints"))


def link_out(folder):
    """As the hub's cache does."""
    (folder.parent / "blobs").mkdir()
    (folder / SHARD).rename(folder.parent / "blobs" / "digest")
    (folder / SHARD).symlink_to("../blobs/digest")


@pytest.mark.parametrize("place", ["../blobs/digest", "{folder}/../blobs/digest", "a/../../blobs/digest", ""])
def test_an_index_names_files_of_its_own_directory(folder, refuses, place):
    """Whichever command asks; what a file there links to is the hub's own."""
    link_out(folder)
    before, index = verifier_fingerprint(str(folder)), folder / INDEX
    place = place.format(folder=folder)
    index.write_text(index.read_text().replace(SHARD, place))
    for ask in (check_weights_present, verifier_fingerprint):
        with refuses(index, "weight_map", place, "files in the verifier's own directory"):
            ask(str(folder))
    index.write_text(index.read_text().replace(f'"{place}"', f'"{SHARD}"'))
    assert verifier_fingerprint(str(folder)) == before


def test_of_two_sets_of_weights_none_is_chosen(folder, refuses):
    """transformers reads the one, Speculators the other."""
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with refuses(folder, "weights", "both model.safetensors and an index of other files", "one of the two"):
        verifier_fingerprint(str(folder))


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
def weights(folder):
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
    assert torch.equal(VerifierHead.load(str(tmp_path / "rewritten")).weight, weights[EMBEDDING])
    (tmp_path / "rewritten").rename(tmp_path / "tied")
    with refuses(tmp_path / "rewritten", HEAD, "missing", UNTIED):
        built(weights)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_weights_of_another_shape_are_refused(built, weights, refuses, tmp_path, name):
    with refuses(tmp_path / "rewritten", name, "(60, 32)", "(61, 32), by the config's sizes"):
        built({**weights, name: weights[name][:-1].clone()})


def test_a_verifier_is_known_by_its_tensors_and_not_by_its_shards(folder):
    """Every byte of them, their names, shapes and dtypes."""
    plain = {f"t{i}": torch.full((40, 20), float(i)) for i in range(4)}

    def print_of(shards=1, **changes):
        for file in folder.glob("model*"):
            file.unlink()
        tensors = list((plain | changes).items())
        parts = {f"m{shard}.safetensors": dict(tensors[shard::shards]) for shard in range(shards)}
        for name, part in parts.items():
            save_file(part, folder / name)
        where = {name: file for file, part in parts.items() for name in part}
        (folder / INDEX).write_text(json.dumps({"weight_map": where}))
        return verifier_fingerprint(str(folder))

    others = [{"t1": plain["t1"].clone()} for _ in range(4)]
    for change, element in zip(others, (0, 180, 400, 799)):
        change["t1"].view(-1)[element] += 1
    others += [{"t1": plain["t1"].reshape(20, 40)}, {"t4": torch.zeros(1)}, {"t1": plain["t1"].half()}]
    own = print_of()
    (folder / "consolidated.safetensors").write_bytes(b"which transformers does not load")
    (folder / "original").mkdir()
    assert print_of(shards=3) == own
    assert len({own, *(print_of(**change) for change in others)}) == 8


def edits(name, **values):
    """Values of a JSON file; an ellipsis takes one away."""

    def change(folder):
        if not (folder / name).exists():
            (folder / name).write_text("{}")
        edit(folder / name, **values)

    return change


ANOTHER = {
    "layers": edits("config.json", num_hidden_layers=7),
    "activation": edits("config.json", hidden_act="gelu"),
    "rope": edits("config.json", rope_parameters={"rope_theta": 5.0, "rope_type": "default"}),
    "end": edits("generation_config.json", eos_token_id=[2, 5]),
    "template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "template in the config": edits("tokenizer_config.json", chat_template="{{ messages }}"),
    "tokenizer": edits("tokenizer.json", normalizer={"type": "Lowercase"}),
}
THE_SAME = {
    "version": edits("config.json", transformers_version="9.0", _name_or_path="elsewhere"),
    "cache": edits("config.json", use_cache=False),
    "layout": edits("config.json"),
    "notes": lambda folder: (folder / "README.md").write_text("notes"),
    "dtype": lambda folder: edits("config.json", torch_dtype=dtype_in(folder), dtype=...)(folder),
}


def dtype_in(folder):
    content = json.loads((folder / "config.json").read_text())
    return content.get("dtype") or content.get("torch_dtype")


@pytest.mark.parametrize("change", [*ANOTHER, *THE_SAME])
def test_a_verifier_is_known_by_all_that_its_answers_come_from(folder, change):
    build_tokenizer(folder)
    before = verifier_fingerprint(str(folder))
    (ANOTHER | THE_SAME)[change](folder)
    assert (verifier_fingerprint(str(folder)) != before) == (change in ANOTHER)


@pytest.fixture
def settled(monkeypatch):
    """Files are old enough at once."""
    monkeypatch.setattr(fingerprint, "SETTLED", -1.0)


def test_weights_are_read_once(folder, settled, monkeypatch):
    before, real, read = verifier_fingerprint(str(folder)), fingerprint._digests, []
    monkeypatch.setattr(fingerprint, "_digests", lambda file: read.append(file.name) or real(file))
    assert (verifier_fingerprint(str(folder)), read) == (before, [])
    about = (folder / SHARD).stat()
    flipped = bytearray((folder / SHARD).read_bytes())
    flipped[-100] ^= 1
    (folder / SHARD).write_bytes(flipped)
    os.utime(folder / SHARD, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert verifier_fingerprint(str(folder)) != before
    assert read == [SHARD], "its time of change was put back, and still it was read"


@pytest.mark.parametrize("damage", ["{", "[]", "{}", "other digests", "no directory"])
def test_a_cache_that_is_damaged_is_none(folder, settled, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = verifier_fingerprint(str(folder))
    assert len(list(cache_directory().iterdir())) == 2, "two shards"
    for file in cache_directory().iterdir():
        text = file.read_text()
        file.write_text(text.replace("[", "[1, ") if damage == "other digests" else damage)
    if damage == "no directory":
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("")
    assert verifier_fingerprint(str(folder)) == before


def test_what_was_written_this_moment_is_not_kept(folder, tmp_path, monkeypatch):
    """It may be written again within a tick of the clock."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in folder.iterdir():
        file.touch()
    verifier_fingerprint(str(folder))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"\2\0\0\0\0\0\0\0[]", None])
def test_what_is_no_safetensors_has_no_fingerprint(tmp_path, refuses, content):
    none = ("no model.safetensors", "a verifier's weights")
    found, expected = none if content is None else ("", "whole safetensors")
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with refuses(tmp_path, "weights", found, expected):
        verifier_fingerprint(str(tmp_path))


def test_a_tokenizer_is_known_by_what_it_does(tmp_path):
    one, other = (open_tokenizer(str(build_tokenizer(tmp_path / name))) for name in "ab")
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    other.chat_template += " "
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
