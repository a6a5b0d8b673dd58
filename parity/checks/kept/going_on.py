"""Which checkpoint a run goes on from, beside half written and damaged ones, and with other settings and records."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from parity.checks.beyond.forms import read_dialogues, record_info, record_of, write_records
from parity.checks.evidence import Evidence
from parity.checks.kept.short_runs import STEPS, short_run, steps_of_auto, visible
from parity.compare import Subject, compare_value
from parity.environment import deterministic, quietly
from parity.result import Row
from parity.runs.port import settings_for
from ports.generate.records import write_record
from ports.training.checkpoint.atomic import MARK
from ports.training.checkpoint.choose import choose
from ports.training.settings import linear_schedule_steps

OWN = (".step_5.old", ".step_5.partial", ".step_5.removed")
"""A user's folders beside checkpoints."""


def check_going_on(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from _auto(evidence, folder / "auto")
    yield from _named(evidence, folder / "auto")
    yield from _elsewhere(evidence, folder / "auto", folder)
    yield from _changed(evidence, folder / "auto")
    yield from _other_records(evidence, folder)


def _auto(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """The newest whole one, whatever lies beside it."""
    subject = evidence.subject("upkeep")
    yield compare_value(subject, "auto", "nothing yet", 0, steps_of_auto(evidence, cpdir))
    with deterministic(), quietly():
        loop = short_run(evidence, cpdir, ckpt_path=Path("auto"))
        loop.run()
        stopped = [loop.plan.keeper.on_stop(loop).name for _ in range(2)]
        loop.accelerator.end_training()
    last = next(path.parent.name for path in cpdir.glob("*0/config.json"))
    names = sorted([*(f"step_{number}" for number in range(1, STEPS + 1)), last])
    yield compare_value(subject, "auto", "saved", names, visible(cpdir))
    stored = json.loads((cpdir / last / "training_state" / "state.json").read_text())
    found = [stored["epoch"], stored["best"], stored["processes"][0]["batches"]]
    yield compare_value(subject, "auto", "within a pass", [0, None, STEPS], found)
    yield compare_value(subject, "auto", "asked to stop after a save", [last, last], stopped)
    for saves in (2, None):
        yield from _stopped_later(evidence, subject, cpdir.with_name(f"stopped {saves}"), saves)
    yield compare_value(subject, "auto", "newest", STEPS, steps_of_auto(evidence, cpdir))
    for name in (last, f"step_{STEPS}"):
        _flip(cpdir / name / "model.safetensors")
    yield compare_value(subject, "auto", "newest is damaged", STEPS - 1, steps_of_auto(evidence, cpdir))
    (cpdir / f"step_{STEPS - 1}" / "training_state" / "state.json").write_text("{")
    yield compare_value(subject, "auto", "its state is damaged", STEPS - 2, steps_of_auto(evidence, cpdir))
    yield from _swept(evidence, subject, cpdir)


def _stopped_later(evidence: Evidence, subject: Subject, cpdir: Path, saves: int | None) -> Iterator[Row]:
    """Asked to stop a step after the last save, or before any, a run saves once more; serials go on from there."""
    with quietly():
        loop = short_run(evidence, cpdir, save_steps=saves)
        for _ in zip(range(STEPS), loop.optimizer_steps()):
            pass
        stopped = loop.plan.keeper.on_stop(loop).name
        loop.accelerator.end_training()
        again = short_run(evidence, cpdir, ckpt_path=Path("auto"))
        later = again.plan.keeper.save(again, "later")
        again.accelerator.end_training()
    serial = json.loads((later / "training_state" / "state.json").read_text())["serial"]
    yield compare_value(subject, "auto", f"serial, saves: {saves}", 1 + bool(saves), serial)
    shutil.rmtree(later)
    expected = f"step_{STEPS}", [*([f"step_{saves}"] if saves else []), f"step_{STEPS}"]
    yield compare_value(subject, "auto", f"asked to stop, saves: {saves}", expected, (stopped, visible(cpdir)))


def _swept(evidence: Evidence, subject: Subject, cpdir: Path) -> Iterator[Row]:
    """A checkpoint that was moved aside and never replaced comes back; half written and half removed ones go."""
    (cpdir / "step_1").rename(cpdir / f"{MARK}step_1.old")
    for name in (f"{MARK}step_9.partial", f"{MARK}step_8.removed", f"{MARK}step_2.old", *OWN):
        (cpdir / name).mkdir()
    before = visible(cpdir)
    yield compare_value(subject, "auto", "moved aside", STEPS - 2, steps_of_auto(evidence, cpdir))
    yield compare_value(subject, "auto", "swept", sorted([*before, "step_1"]), visible(cpdir))
    hidden = sorted(path.name for path in cpdir.iterdir() if path.name.startswith(".") and path.is_dir())
    yield compare_value(subject, "auto", "left over", [*OWN], hidden)


def _named(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """Any other name than ``auto`` is a directory's, lower or higher ones too."""
    for name in ("alpha", "zeta"):
        chosen = choose(settings_for(evidence.case, cpdir.with_name("unused"), ckpt_path=Path(name)))
        found = None if chosen is None else str(chosen.directory)
        yield compare_value(evidence.subject("upkeep"), "auto", f"not {name}", name, found)


def _elsewhere(evidence: Evidence, cpdir: Path, folder: Path) -> Iterator[Row]:
    """A run that goes on in another directory takes its log along, up to the checkpoint."""
    log = (cpdir / "metrics.jsonl").read_bytes()
    stored = json.loads((cpdir / "step_1" / "training_state" / "state.json").read_text())["log"]["bytes"]
    for name in ("z, a later name", "0, an earlier name"):
        with quietly():
            loop = short_run(evidence, folder / name, ckpt_path=cpdir / "step_1")
            tracker = loop.accelerator.get_tracker("jsonl", unwrap=True)
            loop.accelerator.end_training()
        found = (folder / name / "metrics.jsonl").read_bytes()
        yield compare_value(evidence.subject("upkeep"), "resumed", f"log in {name}", log[:stored], found)
        file = folder / name / "metrics.jsonl"
        yield compare_value(evidence.subject("upkeep"), "resumed", f"tracker in {name}", str(file), str(tracker))


def _changed(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """Settings that differ on request: the new rate holds at once, another order begins the pass anew."""
    case, subject, checkpoint = evidence.case, evidence.subject("upkeep"), cpdir / "step_1"
    total, warmup = linear_schedule_steps(len(case.meta.samples_files), case.epoch, 1)
    factor = 1 / warmup if warmup > 1 else (total - 1) / (total - warmup)
    for name, changes, expected in (
        ("another rate", {"lr": 3 * case.lr}, (3 * case.lr * factor, 1)),
        ("another order", {"noise": not case.noise}, (case.lr * factor, 0)),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            loop = short_run(evidence, cpdir, ckpt_path=checkpoint, resume_anyway=True, **changes)
            loop.accelerator.end_training()
        told = re.findall(r"resuming although (\w+) was", said.getvalue())
        yield compare_value(subject, "resumed", f"{name}: said", list(changes), told)
        found = loop.optimizer.param_groups[0]["lr"], loop.totals.batches
        yield compare_value(
            subject, "resumed", name, [round(expected[0], 12), expected[1]], [round(found[0], 12), found[1]]
        )
    (checkpoint / "training_state" / "manifest.json").write_text("{}")
    yield compare_value(subject, "auto", "all are damaged", "ckpt_path", steps_of_auto(evidence, cpdir))
    (checkpoint / "training_state" / "state.json").write_text('{"format_version": 2}')
    yield compare_value(subject, "auto", "of a newer release", "format_version", steps_of_auto(evidence, cpdir))


def _other_records(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """A run on ``*.safetensors`` goes on with the same ones, not with another mask at the beginning of one."""
    subject, case, data = evidence.subject("upkeep"), evidence.case, folder / "records"
    dialogues = read_dialogues(case, evidence.draft.config)
    write_records(data, case, dialogues)
    with deterministic(), quietly():
        loop = short_run(evidence, folder / "on_records", tmpdir=data, max_steps=1)
        loop.run()
        loop.accelerator.end_training()
    found = steps_of_auto(evidence, folder / "on_records", tmpdir=data)
    yield compare_value(subject, "resumed", "the same records", 1, found)
    record = record_of(dialogues[0])
    record["loss_mask"] = 1 - record["loss_mask"]
    write_record(data / "data_0.safetensors", record, record_info(case, dialogues[0], 0))
    found = steps_of_auto(evidence, folder / "on_records", tmpdir=data)
    yield compare_value(subject, "resumed", "another mask in a record", "fingerprint", found)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
