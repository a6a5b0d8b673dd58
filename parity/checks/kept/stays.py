"""What a run leaves on the disk: the checkpoints that stay, the metrics, the bar it draws."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from parity.checks.evidence import Evidence
from parity.checks.kept.short_runs import short_run
from parity.compare import compare_value
from parity.environment import quietly
from parity.result import Row
from parity.runs.port import run_port
from parity.trace import Trace

RATE = 0.03
"""Of the run over several passes."""


def check_what_stays(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from _kept(evidence, folder / "kept")
    yield from _best(evidence, folder / "best")
    yield from _bars(evidence, folder)


def _kept(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """``--keep_last 2``: the newest two, and the pass with the lowest mean loss."""
    damaged = cpdir / "0 damaged" / "training_state"
    damaged.mkdir(parents=True)
    (damaged / "state.json").write_text("{")
    run = run_port(evidence.case, cpdir, live=True, epoch=3, lr=RATE, keep_last=2, overwrite=True)
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


def _best(evidence: Evidence, cpdir: Path) -> Iterator[Row]:
    """``--keep_last 1`` after passes of these losses: the second, which is best, and the last one."""
    with quietly():
        loop = short_run(evidence, cpdir, keep_last=1, save_steps=None)
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
    yield compare_value(subject, "metrics", "order of settings", sorted(settings), list(settings))
    chosen = {"lr": RATE, "epoch": 3, "keep_last": 2, "bs": evidence.case.bs}
    yield compare_value(subject, "metrics", "settings", chosen, {name: float(settings[name]) for name in chosen})


def _bars(evidence: Evidence, folder: Path) -> Iterator[Row]:
    """A bar over a pass is drawn where it was asked for, and nowhere else."""
    for asked in (False, True):
        with contextlib.redirect_stderr(io.StringIO()) as drawn, quietly():
            loop = short_run(evidence, folder / f"bars {asked}", progress=asked, max_steps=1)
            next(loop.optimizer_steps())
            loop.accelerator.end_training()
        bars = re.findall(r"(?:^|\r|\n) *\d+%\|", drawn.getvalue())
        yield compare_value(evidence.subject("upkeep"), "prints", f"bars asked for: {asked}", asked, bool(bars))
