"""Damage to a checkpoint, by name: what a disk, another release or a forger could make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], object]

STATE, MANIFEST = "training_state/state.json", "training_state/manifest.json"


def _flip(name: str) -> Spoil:
    """One bit in the middle of a file."""

    def spoil(checkpoint: Path) -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)

    return spoil


def edit(name: str, change: Callable[[Any], object]) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        content = json.loads((checkpoint / name).read_text())
        change(content)
        (checkpoint / name).write_text(json.dumps(content))

    return spoil


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        file = checkpoint / "training_state" / f"{name}.safetensors"
        stored = load_file(file)
        change(stored)
        save_file({key: value.contiguous() for key, value in stored.items()}, file)

    return spoil


def _fill(kind: str, number: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda stored: stored[_first(stored, kind)].fill_(number)


def _first(stored: dict[str, torch.Tensor], kind: str) -> str:
    return min(name for name in stored if name.startswith(kind))


def _add(stored: dict[str, torch.Tensor]) -> None:
    stored["exp_avg.nothing"] = torch.zeros(1)


def _longer(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")


def _shorter(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _longer_by_one(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value, value[:1]])


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    return _tensors("../model", change)


WEIGHTS: dict[str, tuple[str, Spoil]] = {
    "weights without a tensor": ("tensors", _weights(lambda stored: stored.pop("fc.weight"))),
    "weights with one more": ("tensors", _weights(lambda stored: stored.update(more=torch.zeros(1)))),
    "weights of another shape": ("fc.weight", _weights(lambda s: s.update({"fc.weight": s["fc.weight"][1:]}))),
    "weights of a larger shape": (
        "fc.weight",
        _weights(lambda s: s.update({"fc.weight": _longer_by_one(s["fc.weight"])})),
    ),
    "weights that are no safetensors": (
        "ckpt_path",
        lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b"?"),
    ),
}
"""What even ``--weights_only`` refuses."""

DAMAGED: dict[str, tuple[str, Spoil]] = {
    "a bit in the weights": ("manifest", _flip("model.safetensors")),
    "a bit in Adam's state": ("manifest", _flip("training_state/optimizer.safetensors")),
    "a byte too many": ("manifest", _longer),
    "a byte too few": ("manifest", _shorter),
    "weights missing": ("manifest", lambda checkpoint: (checkpoint / "model.safetensors").unlink()),
    "manifest missing": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).unlink()),
    "manifest that is no JSON": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).write_text("{")),
    "manifest that is a list": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).write_text("[]")),
    "manifest of a newer release": ("format_version", edit(MANIFEST, lambda value: value.update(format_version=2))),
    "manifest of no release": ("files", edit(MANIFEST, lambda value: value.update(format_version=0))),
    "manifest without the state": ("files", edit(MANIFEST, lambda value: value["files"].pop(STATE))),
    "manifest with a field more": ("more", edit(MANIFEST, lambda value: value.update(more=1))),
    "manifest with two faults": (
        "format_version",
        edit(MANIFEST, lambda value: value.update(format_version="one", files=1)),
    ),
    "manifest that leads outside": (
        "files",
        edit(MANIFEST, lambda value: value["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
    ),
    "a note beside the weights": ("", lambda checkpoint: (checkpoint / "note.txt").write_text("mine")),
}
"""Name -> the field that is named, and the damage. What lies beside a checkpoint's files is the user's."""

FORGED: dict[str, tuple[str, Spoil]] = {
    "state of a newer release": ("format_version", edit(STATE, lambda value: value.update(format_version=2))),
    "state with a negative count": ("steps", edit(STATE, lambda value: value.update(steps=-1))),
    "state with a long word for a count": ("steps", edit(STATE, lambda value: value.update(steps="x" * 99))),
    "state without processes": ("processes", edit(STATE, lambda value: value.update(processes=[]))),
    "a place behind the pass": (
        "processes.batches",
        edit(STATE, lambda value: value["processes"][0].update(batches=999)),
    ),
    "processes at different places": (
        "processes.batches",
        edit(STATE, lambda value: value["processes"].append({**value["processes"][0], "batches": 0})),
    ),
    "a rate too many": ("schedule.rates", edit(STATE, lambda value: value["schedule"]["rates"].append(0.1))),
    "a log of a lower digest": ("log", edit(STATE, lambda value: value["log"].update(sha256="0" * 64))),
    "a log of a higher digest": ("log", edit(STATE, lambda value: value["log"].update(sha256="f" * 64))),
    "no rates": ("schedule.rates", edit(STATE, lambda value: value["schedule"]["rates"].clear())),
    "NaN in Adam's state": (
        "exp_avg.draft.fc.weight",
        _tensors("optimizer", lambda stored: stored["exp_avg.draft.fc.weight"].fill_(math.nan)),
    ),
    "squares below 0": (
        "exp_avg_sq.draft.fc.weight",
        _tensors("optimizer", lambda stored: stored["exp_avg_sq.draft.fc.weight"].fill_(-1.0)),
    ),
    "steps below 0": ("step.draft.fc.weight", _tensors("optimizer", lambda s: s["step.draft.fc.weight"].fill_(-3.0))),
    "Adam in bfloat16": (
        "exp_avg.draft.fc.weight",
        _tensors("optimizer", lambda s: s.update({"exp_avg.draft.fc.weight": s["exp_avg.draft.fc.weight"].bfloat16()})),
    ),
    "Adam of another shape": (
        "exp_avg.draft.fc.weight",
        _tensors("optimizer", lambda s: s.update({"exp_avg.draft.fc.weight": s["exp_avg.draft.fc.weight"][1:]})),
    ),
    "Adam of a larger shape": (
        "exp_avg.draft.fc.weight",
        _tensors(
            "optimizer", lambda s: s.update({"exp_avg.draft.fc.weight": _longer_by_one(s["exp_avg.draft.fc.weight"])})
        ),
    ),
    "a moment missing": ("tensors", _tensors("optimizer", lambda stored: stored.pop("step.draft.fc.weight"))),
    "a moment too many": ("tensors", _tensors("optimizer", _add)),
    "no generators": ("generators", _tensors("generators", lambda stored: stored.clear())),
    "a generator of another size": (
        "generators",
        _tensors("generators", lambda stored: stored.update({"0.now.torch": stored["0.now.torch"][1:]})),
    ),
    "a generator too large": (
        "generators",
        _tensors("generators", lambda s: s.update({"0.now.torch": _longer_by_one(s["0.now.torch"])})),
    ),
    "a generator in no state": (
        "generators",
        _tensors("generators", lambda stored: stored["0.now.python"].fill_(-1)),
    ),
    "other draws": (
        "torch",
        _tensors("generators", lambda s: s.update({"0.start.torch": torch.Generator().manual_seed(5).get_state()})),
    ),
    "no safetensors": (
        "tensors",
        lambda checkpoint: (checkpoint / "training_state/optimizer.safetensors").write_bytes(b"?"),
    ),
}
"""Whole by their manifest, and still not what a run saves."""

OTHER: dict[str, Any] = {
    "lr": 0.5,
    "epoch": 99,
    "noise": False,
    "shuffle": False,
    "seed": 1,
    "max_len": 5,
    "packing": True,
    "gradient_accumulation_steps": 3,
    "mixed_precision": "bf16",
    "forward_num_total": 9,
    "group_by_length": True,
}
"""Settings that make another run."""
