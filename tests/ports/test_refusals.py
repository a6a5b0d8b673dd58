"""Situations that end a command with one line, before it has worked for nothing, and that leave nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import place as places

NOWHERE = "/proc/no/such"
"""A folder that nobody can make anything in."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return places.build(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(built, tmp_path):
    """A copy that a test may break."""
    return places.Place(Path(shutil.copytree(built.root, tmp_path / "place")))


def text(name, content):
    return lambda place: (place.root / name).write_text(content)


def changed(name, **values):
    """A file of JSON with other values, in a Speculators config those of its layer."""

    def change(place):
        file = place.root / name
        content = json.loads(file.read_text())
        layer = content.get("transformer_layer_config", content)
        layer.update(values)
        if "rope_parameters" in layer:
            layer["rope_parameters"] |= values
        file.write_text(json.dumps(content))

    return change


def occupied(place):
    (place.root / "occupied").write_text("a file")


def little_room(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))


def no_room(monkeypatch):
    def fails(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fails)


def cut_draft(place):
    file = place.root / "trained_eagle3" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def far_map(place):
    file = place.root / "trained_eagle3" / "model.safetensors"
    tensors = load_file(file)
    tensors["d2t"][-1] += 10**6
    save_file(tensors, file, {"format": "pt"})


def huge(place):
    for file in (place.root / "eagle3" / "0").iterdir():
        if file.suffix == ".safetensors":
            record = load_file(file)
            torch.save({**record, "hidden_state": record["hidden_state"] * 1e38}, file.with_suffix(".ckpt"))
            file.unlink()


FIELDS = {"eagle3": "cpdir", "hass": "cpdir", "generate": "outdir", "vocabulary": "output"}
OCCUPIED, BELOW = "{root}/occupied", "{root}/occupied/below"
MISSING = {"basepath": "/none", "model_path": "/none", "verifier": "/none", "prompts": "/none"}
"""Other bad input, which is met later: the output was looked at first."""

PLACES = OCCUPIED, BELOW, NOWHERE
OUTPUTS = [
    *((name, {field: place}, field) for name, field in FIELDS.items() for place in PLACES),
    *(("evaluate", {"json": place}, "--json") for place in (BELOW, NOWHERE, "{root}", "{root}/none/result.json")),
]


@pytest.mark.parametrize(("command", "changes", "field"), OUTPUTS)
def test_an_output_that_cannot_be_written_is_met_first(place, command, changes, field):
    occupied(place)
    before = tree(place.root)
    changes = {name: value.format(root=place.root) for name, value in changes.items()}
    known = {name: value for name, value in MISSING.items() if name in dict(getattr(place, f"_{command}")())}
    refused(place.run(command, **{**known, **changes}), f": {field}: found ")
    assert tree(place.root) == before


@pytest.mark.parametrize("output", PLACES)
def test_a_folded_draft_that_cannot_be_written(place, output):
    occupied(place)
    refused(place.run("serving", output.format(root=place.root), **{"": "/none"}), ": OUTPUT: found ")


@pytest.mark.parametrize(
    ("command", "disk"),
    [*((name, no_room) for name in FIELDS), *((name, little_room) for name in ("eagle3", "hass", "generate"))],
)
def test_a_full_disk_is_met_first(place, monkeypatch, command, disk):
    before = tree(place.root)
    disk(monkeypatch)
    refused(place.run(command), f": {FIELDS[command]}: found ", "expected ")
    assert tree(place.root) == before


def tree(root):
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def refused(ran, *words):
    """One line, the last one on stderr, with these words in it."""
    assert (ran.code, ran.uncaught) == (2, ""), str(ran)
    line = ran.err.rstrip("\n").split("\n")[-1]
    assert line.startswith("error: "), str(ran)
    for word in words:
        assert word in line, (word, line)


FIFOS = [
    *(("eagle3", f"eagle3/0/data_1.{form}", "file") for form in ("ckpt", "safetensors")),
    ("vocabulary", "eagle3/0/data_0.safetensors", "file"),
    ("eagle3", "draft_eagle3.json", "configpath"),
    ("eagle3", "t2d.npy", "t2d"),
    ("eagle3", "run.yaml", "--config"),
    ("evaluate", "prompts.jsonl", "--prompts"),
    ("evaluate", "trained_eagle3/model.safetensors", "ckpt_path"),
    ("generate", "share.json", "data_path"),
    ("generate", "verifier/z.safetensors", "weights"),
]


@pytest.mark.parametrize(("command", "name", "field"), FIFOS)
def test_a_fifo_is_not_waited_for(place, command, name, field):
    """Whoever waits for its writer gets one after a while who says nothing, so that a test fails instead of hanging."""
    file = place.root / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    writer = subprocess.Popen(["sh", "-c", 'for turn in 1 2 3 4 5; do sleep 4; : > "$0"; done', str(file)])
    try:
        ran = place.run(command, **({"config": str(file)} if field == "--config" else {}))
        refused(ran, f"{file.name}: {field}: found a FIFO, expected a regular file")
    finally:
        writer.kill()
        writer.wait()


def broken(name):
    return changed(name, rope_theta="x")


PROMPTS = {"prompts": "{root}/p.json"}
ARCHITECTURES = changed("verifier/config.json", architectures={"a": 1})
NO_INPUTS = changed("verifier/tokenizer_config.json", model_input_names=0.5)
SITUATIONS = [
    *((name, {"seed": 2**32}, None, ["seed: found '4294967296'"]) for name in ("eagle3", "hass")),
    ("generate", {"device": "abacus", "data_path": "/none"}, None, ["--device: found abacus"]),
    *((name, {"device": "meta"}, None, ["--device: found meta"]) for name in ("generate", "evaluate")),
    ("evaluate", {}, broken("trained_eagle3/config.json"), ["config.json: config: found ", "be built"]),
    *(
        (name, {}, broken(f"draft_{kind}.json"), [f"draft_{kind}.json: config: found "])
        for name, kind in (("eagle3", "eagle3"), ("hass", "hass"), ("estimate", "eagle3"))
    ),
    *((name, {}, ARCHITECTURES, ["basepath: found ", "architect"]) for name in ("eagle3", "hass", "arrow")),
    ("generate", {}, changed("verifier/config.json", vocab_size=40), ["tokenizer: found id ", "ids below 40"]),
    *((name, {}, NO_INPUTS, ["verifier: tokenizer: found "]) for name in ("evaluate", "generate")),
    ("evaluate", {}, cut_draft, ["trained_eagle3/model.safetensors: ckpt_path: found "]),
    ("evaluate", {}, far_map, ["trained_eagle3/model.safetensors: d2t: found draft id 39 ->"]),
    ("evaluate", PROMPTS, text("p.json", '["\\ud800"]'), ["p.json: entry 0: found ", "\\ud800"]),
    ("evaluate", PROMPTS, text("p.json", '{"a": 1}'), ["--prompts: found dict", "an array"]),
    ("eagle3", {}, text("verifier/model.safetensors.index.json", "{,"), ["weight_map: found Expecting property name"]),
    *(
        (name, {}, text("verifier/config.json", "{,"), ["basepath: found Expecting property name"])
        for name in ("eagle3", "evaluate")
    ),
    ("generate", {}, text("share.json", '[{"conversations": 1},'), ["data_path: found ", "JSON"]),
    (
        *("eagle3", {"debug": True, "lr": 1e30, "epoch": 2}, None),
        ["data_", "loss: found nan at optimizer step", "a finite number"],
    ),
    ("eagle3", {"debug": True}, huge, [".ckpt"]),
]


@pytest.mark.parametrize(("command", "changes", "spoil", "words"), SITUATIONS)
def test_a_situation_is_refused(place, command, changes, spoil, words):
    if spoil:
        spoil(place)
    changes = {name: each.format(root=place.root) if isinstance(each, str) else each for name, each in changes.items()}
    refused(place.run(command, **changes), *words)
