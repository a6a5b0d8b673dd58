"""What a run leaves on the disk: which checkpoints stay, which one ``auto`` goes on from, what a killed writer left."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parity.checks.beyond.forms import read_dialogues, record_info, record_of, write_records
from parity.checks.evidence import Evidence, until_refused
from parity.checks.kept.upkeep_parts import check_parts
from parity.checks.kept.written import check_writing
from parity.compare import Subject, compare_value
from parity.environment import deterministic, quietly
from parity.errors import InputError
from parity.result import Row
from parity.runs.port import run_port, start_port
from parity.trace import Trace
from ports.generate.records import write_record
from ports.training.settings import linear_schedule_steps

RATE, STEPS = 0.03, 3
"""Of the run over several passes, and optimizer steps of a short run."""


def check_upkeep(evidence: Evidence) -> list[Row]:
    """By name: the checkpoints that stay, the one a run goes on from, the metrics, and the parts beneath."""
    with tempfile.TemporaryDirectory() as name:
        folder, subject = Path(name), evidence.subject("upkeep")
        return until_refused(subject, _rows(evidence, subject, folder))


def _rows(evidence: Evidence, subject: Subject, folder: Path) -> Iterator[Row]:
    yield from check_writing(subject, folder)
    yield from check_parts(evidence, subject, folder / "parts")
    yield from _kept(evidence, folder / "kept")
    yield from _best(evidence, folder / "best")
    yield from _bars(evidence, folder)
    yield from _auto(evidence, folder / "auto")
    yield from _elsewhere(evidence, folder / "auto", folder)
    yield from _changed(evidence, folder / "auto")
    yield from _other_records(evidence, folder)


def _kept(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """``--keep_last 2``: the newest two, and the pass with the lowest mean loss."""
    damaged = cpdir / "0 damaged" / "training_state"
    damaged.mkdir(parents=True)
    (damaged / "state.json").write_text("{")
    run = run_port(evidence.case, cpdir, live=True, epoch=3, lr=RATE, keep_last=2)
    yield compare_value(evidence.subject("upkeep"), "checkpoints", "damaged one left alone", True, damaged.is_dir())
    means = _means(run.trace)
    best, last, subject = means.index(min(means)), len(means) - 1, evidence.subject("upkeep")
    numbers = sorted({best, last - 1, last})
    found = sorted(_number_of(path.parent) for path in cpdir.glob("*/config.json"))
    yield compare_value(subject, "checkpoints", "that stay", numbers, found)
    yield from _metrics(evidence, run.trace, cpdir)
    stored = json.loads(next(cpdir.glob(f"*{last}/training_state/state.json")).read_text())
    yield compare_value(subject, "checkpoints", "best pass", [best, means[best]], stored["best"])
    yield compare_value(subject, "checkpoints", "serial", last, stored["serial"])
    digests = {name: len(stored["fingerprint"][name]) for name in ("draft", "verifier", "vocabulary", "records")}
    world = {name: stored["fingerprint"][name] for name in ("precision", "processes", "sharding")}
    expected = {"precision": "no", "processes": 1, "sharding": "none"}
    yield compare_value(subject, "checkpoints", "world", expected, world)
    yield compare_value(subject, "checkpoints", "digits of digests", dict.fromkeys(digests, 16), digests)


def _bars(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """A bar over a pass is drawn where it was asked for, and nowhere else."""
    for asked in (False, True):
        with contextlib.redirect_stderr(io.StringIO()) as drawn, quietly():
            loop = _short(evidence, folder / f"bars {asked}", progress=asked, max_steps=1)
            next(loop.optimizer_steps())
            loop.accelerator.end_training()
        bars = re.findall(r"(?:^|\r|\n) *\d+%\|", drawn.getvalue())
        yield compare_value(evidence.subject("upkeep"), "prints", f"bars asked for: {asked}", asked, bool(bars))


def _best(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """``--keep_last 1`` after passes of these losses: the second, which is best, and the last one."""
    with quietly():
        loop = _short(evidence, cpdir, keep_last=1, save_steps=None)
        next(loop.optimizer_steps())
        for epoch, loss in enumerate((3.0, 1.0, None, 1.0, 2.0)):
            loop.plan.keeper.after_pass(loop, epoch, loss)
        loop.accelerator.end_training()
    found = sorted(_number_of(path.parent) for path in cpdir.glob("*/config.json"))
    yield compare_value(evidence.subject("upkeep"), "checkpoints", "best and last", [1, 4], found)


def _number_of(directory: Path) -> int:
    """``model3`` and ``state_3`` are 3."""
    return int("".join(letter for letter in directory.name if letter.isdigit()))


def _means(trace: Trace) -> list[float]:
    """Mean loss of every pass, summed as a run sums."""
    passes: list[list[float]] = [[] for _ in range(trace.curve[-1].epoch + 1)]
    for point in trace.curve:
        passes[point.epoch].append(point.loss)
    return [sum(losses) / len(losses) for losses in passes]


def _metrics(evidence: Evidence, trace: Trace, cpdir: Path) -> Iterator[Row]:
    """``metrics.jsonl`` says what the loop saw; settings lie beside it."""
    expected = [
        {
            "step": number,
            "train/lr": point.lr_after,
            **point.logged,
            "train/loss": point.loss,
            "train/acc": point.correct / point.rows,
            **{f"train/top_{place}_acc": count / point.rows for place, count in enumerate(point.top, 1)},
        }
        for number, point in enumerate(trace.curve)
        if point.rows
    ]
    found = [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]
    subject = evidence.subject("upkeep")
    yield compare_value(subject, "metrics", "lines", expected, found)
    settings = json.loads((cpdir / "settings.json").read_text())
    chosen = {"lr": RATE, "epoch": 3, "keep_last": 2, "bs": evidence.case.bs}
    yield compare_value(subject, "metrics", "settings", chosen, {name: _number(settings.get(name)) for name in chosen})


def _number(value: Any) -> float:
    return float(value)


def _short(evidence: Evidence, cpdir: Path, **changes: Any) -> Any:
    """A loop of a few steps, within a pass, that saves after each of them."""
    own = {"max_steps": STEPS, "save_steps": 1, "bs": 1, "gradient_accumulation_steps": 1}
    return start_port(evidence.case, cpdir, live=True, **{**own, **changes})


def _steps(evidence: Evidence, cpdir: Path, **changes: Any) -> int | str:
    """Where a run with ``--ckpt_path auto`` begins, or the field it refuses."""
    with quietly():
        try:
            loop = _short(evidence, cpdir, ckpt_path=Path("auto"), **changes)
        except InputError as error:
            return error.field or "?"
        loop.accelerator.end_training()
    return int(loop.steps)


def _auto(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """The newest whole one, whatever lies beside it."""
    subject = evidence.subject("upkeep")
    yield compare_value(subject, "auto", "nothing yet", 0, _steps(evidence, cpdir))
    with deterministic(), quietly():
        loop = _short(evidence, cpdir)
        loop.run()
        stopped = [loop.plan.keeper.on_stop(loop).name for _ in range(2)]
        loop.accelerator.end_training()
    last = next(path.parent.name for path in cpdir.glob("*0/config.json"))
    names = sorted([*(f"step_{number}" for number in range(1, STEPS + 1)), last])
    yield compare_value(subject, "auto", "saved", names, _visible(cpdir))
    stored = json.loads((cpdir / last / "training_state" / "state.json").read_text())
    found = [stored["epoch"], stored["best"], stored["processes"][0]["batches"]]
    yield compare_value(subject, "auto", "within a pass", [0, None, STEPS], found)
    yield compare_value(subject, "auto", "asked to stop after a save", [last, last], stopped)
    for saves in (2, None):
        yield _stopped_later(evidence, subject, cpdir.with_name(f"stopped {saves}"), saves)
    yield compare_value(subject, "auto", "newest", STEPS, _steps(evidence, cpdir))
    for name in (last, f"step_{STEPS}"):
        _flip(cpdir / name / "model.safetensors")
    yield compare_value(subject, "auto", "newest is damaged", STEPS - 1, _steps(evidence, cpdir))
    (cpdir / f"step_{STEPS - 1}" / "training_state" / "state.json").write_text("{")
    yield compare_value(subject, "auto", "its state is damaged", STEPS - 2, _steps(evidence, cpdir))
    yield from _swept(evidence, subject, cpdir)


def _stopped_later(evidence: Evidence, subject: Subject, cpdir: Path, saves: int | None) -> Row:
    """Asked to stop a step after the last save, or before any, a run saves once more."""
    with quietly():
        loop = _short(evidence, cpdir, save_steps=saves)
        for _ in zip(range(STEPS), loop.optimizer_steps()):
            pass
        stopped = loop.plan.keeper.on_stop(loop).name
        loop.accelerator.end_training()
    expected = f"step_{STEPS}", [*([f"step_{saves}"] if saves else []), f"step_{STEPS}"]
    return compare_value(subject, "auto", f"asked to stop, saves: {saves}", expected, (stopped, _visible(cpdir)))


def _swept(evidence: Evidence, subject: Subject, cpdir: Path) -> Iterator[Row]:
    """A checkpoint that was moved aside and never replaced comes back; half written and half removed ones go."""
    (cpdir / "step_1").rename(cpdir / ".step_1.old")
    for name in (".step_9.partial", ".step_8.removed", ".step_2.old"):
        (cpdir / name).mkdir()
    before = _visible(cpdir)
    yield compare_value(subject, "auto", "moved aside", STEPS - 2, _steps(evidence, cpdir))
    yield compare_value(subject, "auto", "swept", sorted([*before, "step_1"]), _visible(cpdir))
    hidden = sorted(path.name for path in cpdir.iterdir() if path.name.startswith(".") and path.is_dir())
    yield compare_value(subject, "auto", "left over", [], hidden)


def _elsewhere(evidence: Evidence, cpdir: Path, folder: Path) -> Iterator[Row]:
    """A run that goes on in another directory takes its log along, up to the checkpoint."""
    log = (cpdir / "metrics.jsonl").read_bytes()
    stored = json.loads((cpdir / "step_1" / "training_state" / "state.json").read_text())["log"]["bytes"]
    for name in ("a later name", "0 an earlier name"):
        with quietly():
            loop = _short(evidence, folder / name, ckpt_path=cpdir / "step_1")
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
            loop = _short(evidence, cpdir, ckpt_path=checkpoint, resume_anyway=True, **changes)
            loop.accelerator.end_training()
        told = re.findall(r"resuming although (\w+) was", said.getvalue())
        yield compare_value(subject, "resumed", f"{name}: said", list(changes), told)
        found = loop.optimizer.param_groups[0]["lr"], loop.totals.batches
        yield compare_value(
            subject, "resumed", name, [round(expected[0], 12), expected[1]], [round(found[0], 12), found[1]]
        )
    (checkpoint / "training_state" / "manifest.json").write_text("{}")
    yield compare_value(subject, "auto", "all are damaged", "ckpt_path", _steps(evidence, cpdir))
    (checkpoint / "training_state" / "state.json").write_text('{"format_version": 2}')
    yield compare_value(subject, "auto", "of a newer release", "format_version", _steps(evidence, cpdir))


def _other_records(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """A run on ``*.safetensors`` goes on with the same ones, not with another mask at the beginning of one."""
    subject, case, data = evidence.subject("upkeep"), evidence.case, folder / "records"
    dialogues = read_dialogues(case, evidence.draft.config)
    write_records(data, case, dialogues)
    with deterministic(), quietly():
        loop = _short(evidence, folder / "on_records", tmpdir=data, max_steps=1)
        loop.run()
        loop.accelerator.end_training()
    found = _steps(evidence, folder / "on_records", tmpdir=data)
    yield compare_value(subject, "resumed", "the same records", 1, found)
    record = record_of(dialogues[0])
    record["loss_mask"] = 1 - record["loss_mask"]
    write_record(data / "data_0.safetensors", record, record_info(case, dialogues[0], 0))
    found = _steps(evidence, folder / "on_records", tmpdir=data)
    yield compare_value(subject, "resumed", "another mask in a record", "fingerprint", found)


def _visible(cpdir: Path) -> list[str]:
    return sorted(path.name for path in cpdir.iterdir() if path.is_dir() and not path.name.startswith("."))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
