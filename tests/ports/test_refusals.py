"""Situations that end a command with one line, before it has worked for nothing, and that leave nothing behind."""

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ports.training.settings import public_name
from tests.ports.conftest import edit, edit_tensors

NOWHERE = "/proc/no/such"
"""A folder that nobody can make anything in."""


def fifo(name):
    """Whoever waits for its writer gets one after a while who says nothing, so that a test fails instead of hanging."""

    def put(place):
        file = place.root / name
        file.unlink(missing_ok=True)
        os.mkfifo(file)
        return subprocess.Popen(["sh", "-c", 'for turn in 1 2 3 4 5; do sleep 4; : > "$0"; done', str(file)])

    return put


def changed(name, **values):
    """A file of JSON with other values, in a Speculators config those of its layer."""

    def change(content):
        layer = content.get("transformer_layer_config", content)
        layer.update(values)
        if "rope_parameters" in layer:
            layer["rope_parameters"] |= values

    return lambda place: edit(place.root / name, change)


def occupied(place):
    (place.root / "occupied").write_text("a file")


def little_room(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))


def no_room(monkeypatch):
    def fails(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fails)


def far_map(place):
    edit_tensors(place.root / "trained_eagle3" / "model.safetensors", lambda tensors: tensors["d2t"][-1].add_(10**6))


def huge(place):
    for file in (place.root / "eagle3" / "0").iterdir():
        if file.suffix == ".safetensors":
            record = load_file(file)
            torch.save({**record, "hidden_state": record["hidden_state"] * 1e38}, file.with_suffix(".ckpt"))
            file.unlink()


OCCUPIED, BELOW = "{root}/occupied", "{root}/occupied/below"
MISSING = {"basepath": "/none", "model_path": "/none", "verifier": "/none", "prompts": "/none"}
"""Other bad input, which is met later: the output was looked at first."""

FIELDS = {"eagle3": "cpdir", "hass": "cpdir", "generate": "outdir", "vocabulary": "out", "evaluate": "json"}
WRITERS = ("eagle3", "hass", "generate", "vocabulary")
OUTPUTS = [(command, place, None) for command in WRITERS for place in (OCCUPIED, BELOW, NOWHERE)]
OUTPUTS += [("evaluate", place, None) for place in (BELOW, NOWHERE, "{root}", "{root}/none/result.json")]
OUTPUTS += [(command, None, no_room) for command in WRITERS]
OUTPUTS += [(command, None, little_room) for command in ("eagle3", "hass", "generate")]


@pytest.mark.parametrize(("command", "output", "disk"), OUTPUTS)
def test_an_output_that_cannot_be_written_is_met_first(place, monkeypatch, command, output, disk):
    occupied(place)
    before, field = tree(place.root), FIELDS[command]
    changes = {}
    if disk is None:
        known = {name: value for name, value in MISSING.items() if name in dict(getattr(place, f"_{command}")())}
        changes = {**known, field: output.format(root=place.root)}
    else:
        disk(monkeypatch)
    refused(place.run(command, **changes), f"{public_name(field)}: found ", "expected ")
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
    ("eagle3", "eagle3/0/data_1.ckpt", "file"),
    ("eagle3", "eagle3/0/data_1.safetensors", "file"),
    ("eagle3", "draft_eagle3.json", "draft_config"),
    ("eagle3", "t2d.npy", "t2d"),
    ("eagle3", "run.yaml", "--config"),
    ("evaluate", "prompts.jsonl", "--prompts"),
    ("evaluate", "trained_eagle3/model.safetensors", "resume"),
    ("generate", "share.json", "data"),
    ("generate", "verifier/model-00001-of-00002.safetensors", "weights"),
]
NO_THETA = {"rope_theta": "x"}
SITUATIONS = [
    ("eagle3", {"seed": 2**32}, None, ["seed: found '4294967296'"]),
    ("generate", {"device": "abacus", "data_path": "/none"}, None, ["--device: found abacus"]),
    ("evaluate", {"device": "meta"}, None, ["--device: found meta"]),
    *(
        (
            command,
            {"config": "{root}/run.yaml"} if field == "--config" else {},
            fifo(name),
            [f"{Path(name).name}: {field}: found a FIFO", "expected a regular file"],
        )
        for command, name, field in FIFOS
    ),
    ("evaluate", {}, changed("trained_eagle3/config.json", **NO_THETA), ["config.json: config: found ", "be built"]),
    ("eagle3", {}, changed("draft_eagle3.json", **NO_THETA), ["draft_eagle3.json: config: found "]),
    *(
        (name, {}, changed("verifier/config.json", architectures={"a": 1}), ["verifier: verifier: found ", "architect"])
        for name in ("eagle3", "hass", "arrow")
    ),
    ("generate", {}, changed("verifier/config.json", vocab_size=40), ["tokenizer: found id ", "ids below 40"]),
    ("evaluate", {}, changed("verifier/tokenizer_config.json", model_input_names=0.5), ["verifier: tokenizer: found "]),
    ("evaluate", {}, far_map, ["trained_eagle3/model.safetensors: d2t: found draft id 39 ->"]),
    ("eagle3", {"debug": True, "lr": 1e30, "epoch": 2}, None, ["data_", "loss: found nan at optimizer step"]),
    ("eagle3", {"debug": True}, huge, [".ckpt"]),
]


@pytest.mark.parametrize(("command", "changes", "spoil", "words"), SITUATIONS)
def test_a_situation_is_refused(place, command, changes, spoil, words):
    writer = spoil(place) if spoil else None
    known = {name: value for name, value in changes.items() if not isinstance(value, str)}
    changes = {name: value.format(root=place.root) for name, value in changes.items() if name not in known}
    try:
        refused(place.run(command, **known, **changes), *words)
    finally:
        if isinstance(writer, subprocess.Popen):
            writer.kill()
            writer.wait()
