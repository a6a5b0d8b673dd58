"""Checkpoints that no run may go on from, and settings under which one is another run's."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from parity.checks.evidence import Evidence
from parity.environment import deterministic, quietly
from parity.runs.port import start_port
from ports.training.checkpoint.manifest import seal

Attempt = tuple[str, str, Callable[[], object]]
Spoil = Callable[[Path], object]

STEPS = 2
"""Optimizer steps before the checkpoint, with noise and in a drawn order."""

STATE, MANIFEST = "training_state/state.json", "training_state/manifest.json"


def bad_checkpoints(evidence: Evidence, folder: Path) -> Iterator[Attempt]:
    """Damaged and forged ones, other runs', and runs that cannot begin or go on."""
    saved = _save(evidence, folder / "saved")
    yield "as it was saved", "", lambda: _resume(evidence, saved)
    for name, (field, spoil) in _DAMAGED.items():
        yield name, field, _spoiled(evidence, saved, folder / name, spoil, sealed=False)
    for name, (field, spoil) in _FORGED.items():
        yield name, field, _spoiled(evidence, saved, folder / name, spoil, sealed=True)
    for name, value in _OTHER.items():
        yield f"another {name}", "fingerprint", lambda name=name, value=value: _resume(evidence, saved, **{name: value})
    yield "another rate, anyway", "", lambda: _resume(evidence, saved, lr=evidence.case.lr * 2, resume_anyway=True)
    yield "more steps", "", lambda: _resume(evidence, saved, max_steps=9, save_steps=1, prefetch_factor=3)
    yield "the weights alone", "", lambda: _resume(evidence, saved, lr=1.0, weights_only=True)
    yield "another log", "log", lambda: _another_log(evidence, saved, folder / "log", False)
    yield "another log, anyway", "", lambda: _another_log(evidence, saved, folder / "log anyway", True)
    yield "fewer records than a batch", "records", lambda: _start(evidence, folder / "few", bs=999)
    yield "a loss that is no number", "loss", lambda: _without_number(evidence, folder / "nan")


def _start(evidence: Evidence, cpdir: Path, **changes: Any) -> Any:
    settings = {"live": True, "noise": True, "shuffle": True, "max_steps": STEPS, **changes}
    return start_port(evidence.case, cpdir, **settings)


def _save(evidence: Evidence, cpdir: Path) -> Path:
    with deterministic(), quietly():
        loop = _start(evidence, cpdir, save_steps=STEPS)
        loop.run()
        loop.accelerator.end_training()
    return cpdir / f"step_{STEPS}"


def _resume(evidence: Evidence, checkpoint: Path, **changes: Any) -> None:
    """Go on for a step, beside the checkpoint."""
    with deterministic(1), quietly():
        loop = _start(evidence, checkpoint.parent, **{"ckpt_path": checkpoint, "max_steps": STEPS + 1, **changes})
        next(loop.optimizer_steps(), None)
        loop.accelerator.end_training()


def _copy(saved: Path, folder: Path) -> Path:
    shutil.copytree(saved.parent, folder)
    return folder / saved.name


def _spoiled(evidence: Evidence, saved: Path, folder: Path, spoil: Spoil, sealed: bool) -> Callable[[], object]:
    def attempt() -> None:
        checkpoint = _copy(saved, folder)
        spoil(checkpoint)
        if sealed:
            (checkpoint / MANIFEST).unlink()
            seal(checkpoint)
        _resume(evidence, checkpoint)

    return attempt


def _flip(name: str) -> Spoil:
    """One bit in the middle of a file."""

    def spoil(checkpoint: Path) -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)

    return spoil


def _edit(name: str, change: Callable[[Any], object]) -> Spoil:
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


def _reshape(stored: dict[str, torch.Tensor]) -> None:
    name = _first(stored, "exp_avg.")
    stored[name] = stored[name].flatten()


def _add(stored: dict[str, torch.Tensor]) -> None:
    stored["exp_avg.nothing"] = torch.zeros(1)


def _longer(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")


_DAMAGED: dict[str, tuple[str, Spoil]] = {
    "a bit in the weights": ("manifest", _flip("model.safetensors")),
    "a bit in Adam's state": ("manifest", _flip("training_state/optimizer.safetensors")),
    "a byte too many": ("manifest", _longer),
    "weights missing": ("manifest", lambda checkpoint: (checkpoint / "model.safetensors").unlink()),
    "manifest missing": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).unlink()),
    "manifest that is no JSON": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).write_text("{")),
    "manifest that is a list": ("manifest", lambda checkpoint: (checkpoint / MANIFEST).write_text("[]")),
    "manifest of a newer release": ("format_version", _edit(MANIFEST, lambda value: value.update(format_version=2))),
    "manifest of no release": ("files", _edit(MANIFEST, lambda value: value.update(format_version=0))),
    "manifest without the state": ("files", _edit(MANIFEST, lambda value: value["files"].pop(STATE))),
    "manifest with a field more": ("more", _edit(MANIFEST, lambda value: value.update(more=1))),
    "manifest that leads outside": (
        "files",
        _edit(MANIFEST, lambda value: value["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
    ),
    "a note beside the weights": ("", lambda checkpoint: (checkpoint / "note.txt").write_text("mine")),
}
"""Name -> the field that is named, and the damage. What lies beside a checkpoint's files is the user's."""

_FORGED: dict[str, tuple[str, Spoil]] = {
    "state of a newer release": ("format_version", _edit(STATE, lambda value: value.update(format_version=2))),
    "state with a negative count": ("steps", _edit(STATE, lambda value: value.update(steps=-1))),
    "state without processes": ("processes", _edit(STATE, lambda value: value.update(processes=[]))),
    "a place behind the pass": (
        "processes.batches",
        _edit(STATE, lambda value: value["processes"][0].update(batches=999)),
    ),
    "a rate too many": ("schedule.rates", _edit(STATE, lambda value: value["schedule"]["rates"].append(0.1))),
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
    "a moment missing": ("tensors", _tensors("optimizer", lambda stored: stored.pop("step.draft.fc.weight"))),
    "a moment too many": ("tensors", _tensors("optimizer", _add)),
    "no generators": ("generators", _tensors("generators", lambda stored: stored.clear())),
    "a generator of another size": (
        "generators",
        _tensors("generators", lambda stored: stored.update({"0.now.torch": stored["0.now.torch"][1:]})),
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

_OTHER: dict[str, Any] = {
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


def _another_log(evidence: Evidence, saved: Path, folder: Path, anyway: bool) -> None:
    checkpoint = _copy(saved, folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    _resume(evidence, checkpoint, resume_anyway=anyway)


def _without_number(evidence: Evidence, cpdir: Path) -> None:
    with deterministic(), quietly():
        loop = _start(evidence, cpdir)
        loop.objective.draft.fc.weight.data.fill_(math.nan)
        try:
            next(loop.optimizer_steps())
        finally:
            loop.accelerator.end_training()
