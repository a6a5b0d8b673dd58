"""Checkpoints that no run may go on from, and settings under which one is another run's."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from parity.checks.evidence import Evidence
from parity.checks.kept.attempts import Attempt
from parity.checks.kept.forgeries import DAMAGED, FORGED, MANIFEST, OTHER, STATE, WEIGHTS, Spoil, edit
from parity.environment import deterministic, quietly
from parity.runs.port import start_port
from ports.training.checkpoint.manifest import seal

STEPS = 2
"""Optimizer steps before the checkpoint, with noise and in a drawn order."""

NEUTRAL: dict[str, Any] = {
    "max_steps": 9,
    "save_steps": 1,
    "keep_last": 5,
    "prefetch_factor": 3,
    "report_data_wait": True,
    "activation_checkpointing": True,
}
"""Settings that no number depends on."""


def bad_checkpoints(evidence: Evidence, folder: Path) -> Iterator[Attempt]:
    """Damaged and forged ones, other runs', and runs that cannot begin or go on."""
    saved = _save(evidence, folder / "saved")
    yield "as it was saved", "", lambda: _resume(evidence, saved)
    for name, (field, spoil) in DAMAGED.items():
        yield name, field, _spoiled(evidence, saved, folder / name, spoil, sealed=False)
    for name, (field, spoil) in FORGED.items():
        yield name, field, _spoiled(evidence, saved, folder / name, spoil, sealed=True)
    more = partial(_with_ignored, evidence.draft)
    yield "the verifier's weights too", "", _spoiled(evidence, saved, folder / "more", more, sealed=True)
    for name, (field, spoil) in WEIGHTS.items():
        yield name, field, _spoiled(evidence, saved, folder / name, spoil, sealed=True, lr=1.0, weights_only=True)
    for name, field in {"verifier": "fingerprint", "draft": "fingerprint", "bs": "", "records": ""}.items():
        forged = edit(STATE, partial(_forge, name))
        attempt = _spoiled(evidence, saved, folder / f"forged {name}", forged, sealed=True, resume_anyway=True)
        yield f"another {name}, anyway", field, attempt
    for name, value in OTHER.items():
        yield f"another {name}", "fingerprint", partial(_resume, evidence, saved, **{name: value})
    yield "another rate, anyway", "", lambda: _resume(evidence, saved, lr=evidence.case.lr * 2, resume_anyway=True)
    yield "more steps, saved and reported otherwise", "", lambda: _resume(evidence, saved, **NEUTRAL)
    yield "the weights alone", "", lambda: _resume(evidence, saved, lr=1.0, weights_only=True)
    yield "another log", "log", lambda: _another_log(evidence, saved, folder / "log", False)
    yield "no log yet", "", _spoiled(evidence, saved, folder / "no log", edit(STATE, _without_log), sealed=True)
    gone = _spoiled(
        evidence, saved, folder / "gone", lambda path: (path.parent / "metrics.jsonl").unlink(), sealed=True
    )
    yield "a log that is gone", "log", gone
    yield "another log, anyway", "", lambda: _another_log(evidence, saved, folder / "log anyway", True)
    yield "records that moved", "", partial(_other_records, evidence, folder / "moved", False)
    yield "records with another number", "fingerprint", partial(_other_records, evidence, folder / "other", True)
    yield "fewer records than a batch", "records", lambda: _start(evidence, folder / "few", bs=999)
    count = len(evidence.case.meta.samples_files)
    yield (
        "as many records as a batch",
        "",
        lambda: _start(evidence, folder / "all", bs=count).accelerator.end_training(),
    )
    yield "a loss that is no number", "loss", lambda: _without_number(evidence, folder / "nan")


def _forge(name: str, state: Any) -> None:
    state["fingerprint"][name] = "forged"


def _with_ignored(draft: Any, checkpoint: Path) -> None:
    """Other writers store what the draft has from its verifier."""
    own, file = draft.state_dict(), checkpoint / "model.safetensors"
    ignored = {name: own[name].clone() for name in draft._keys_to_ignore_on_save}
    save_file({**load_file(file), **ignored}, file)


def _lose_log(checkpoint: Path) -> None:
    (checkpoint.parent / "metrics.jsonl").unlink()


def _without_log(state: Any) -> None:
    state["log"] = {"bytes": 0, "sha256": ""}


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
    """Go on for a step, beside the checkpoint, or from its weights in a directory of its own."""
    cpdir = checkpoint.parent / ("anew" if changes.get("weights_only") else "")
    with deterministic(1), quietly():
        loop = _start(evidence, cpdir, **{"ckpt_path": checkpoint, "max_steps": STEPS + 1, **changes})
        next(loop.optimizer_steps(), None)
        loop.accelerator.end_training()


def _whole_pass(evidence: Evidence, cpdir: Path) -> None:
    _start(evidence, cpdir, bs=len(evidence.case.meta.samples_files)).accelerator.end_training()


def _last_step(evidence: Evidence, cpdir: Path) -> None:
    """Go on from where all batches of a pass are done and the pass is not."""
    count = len(evidence.case.meta.samples_files)
    settings = {"bs": 1, "gradient_accumulation_steps": 1, "epoch": 1, "max_steps": None}
    with deterministic(), quietly():
        loop = _start(evidence, cpdir, save_steps=count, **settings)
        for _ in zip(range(count), loop.optimizer_steps()):
            pass
        loop.accelerator.end_training()
        again = _start(evidence, cpdir, ckpt_path=cpdir / f"step_{count}", **settings)
        next(again.optimizer_steps())
        again.accelerator.end_training()


def _copy(saved: Path, folder: Path) -> Path:
    shutil.copytree(saved.parent, folder)
    return folder / saved.name


def _spoiled(
    evidence: Evidence, saved: Path, folder: Path, spoil: Spoil, sealed: bool, **changes: Any
) -> Callable[[], object]:
    def attempt() -> None:
        checkpoint = _copy(saved, folder)
        spoil(checkpoint)
        if sealed:
            (checkpoint / MANIFEST).unlink()
            seal(checkpoint)
        _resume(evidence, checkpoint, **changes)

    return attempt


def _another_log(evidence: Evidence, saved: Path, folder: Path, anyway: bool) -> None:
    checkpoint = _copy(saved, folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    _resume(evidence, checkpoint, resume_anyway=anyway)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def _other_records(evidence: Evidence, folder: Path, changed: bool) -> None:
    """Go on with the run's records in another place; ``changed``: one number in the last of them is another."""
    case, data = evidence.case, folder / "data"
    shutil.copytree(case.tmpdir, data)
    saved = _save(evidence, folder / "run")
    if changed:
        file = data / case.meta.samples_files[-1]
        record = torch.load(file, weights_only=True)
        record["hidden_state"][0, 0] += 1
        torch.save(record, file)
    _resume(evidence, saved, tmpdir=data)


def _without_number(evidence: Evidence, cpdir: Path) -> None:
    with deterministic(), quietly():
        loop = _start(evidence, cpdir)
        steps = loop.optimizer_steps()
        next(steps)
        loop.objective.draft.fc.weight.data.fill_(math.nan)
        try:
            next(steps)
        finally:
            loop.accelerator.end_training()
