"""A run that is stopped and resumed against the one that was never stopped: equal to the bit, in everything."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.compare import compare_groups, compare_series, compare_value
from parity.environment import deterministic, quietly
from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.port import start_port
from parity.prototypes.recorded import PROTOTYPE_SEED
from parity.verdict import Row
from ports.training.checkpoint.adam import adam_state
from ports.training.loop import Loop

STOP = 3
"""Optimizer steps before the stop: in the middle of a pass, where there are more."""

BEYOND = 2
"""Steps of the second pass, so that the resumed run also draws an order of its own."""


@dataclass
class End:
    """Where a run ended: weights, Adam's state, generators, schedule and log."""

    weights: dict[str, Tensor]
    adam: dict[str, Tensor]
    generators: dict[str, Tensor]
    schedule: dict[str, Any]
    log: list[dict[str, Any]]


def check_resume(evidence: Evidence) -> list[Row]:
    """Weights, Adam's state, generators, schedule and log of both runs, with the case's settings, shuffle and noise."""
    case, subject = evidence.case, evidence.subject("resume")
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        expected = _run(case, straight, 0, save_steps=STOP)
        found = _run(case, Path(folder) / "resumed", 1, ckpt_path=straight / f"step_{STOP}")
    exact = evidence.tolerance("resume")
    rows = [
        compare_value(subject, "schedule", name, expected.schedule[name], found.schedule[name])
        for name in expected.schedule
    ]
    for kind in ("weights", "adam", "generators"):
        rows += compare_groups(subject, "resume", getattr(expected, kind), getattr(found, kind), exact)
    rows.append(compare_value(subject, "log", "lines", len(expected.log), len(found.log)))
    for name in sorted(expected.log[0]) if expected.log else ():
        mine, theirs = ([float(line.get(name, torch.nan)) for line in side.log] for side in (expected, found))
        rows.append(compare_series(subject, "resume", name, mine, theirs, exact))
    return rows


def _run(case: Case, cpdir: Path, disturbance: int, **changes: Any) -> End:
    """The port, with draws of its own, for one pass and a little more.

    ``disturbance`` moves the seed of the process: what a resumed run draws must not depend on it.
    """
    steps = len(case.meta.samples_files) // case.bs // case.accumulation
    length = max(STOP + 1, min(steps + BEYOND, steps * (case.epoch + 1)))
    seed = PROTOTYPE_SEED if case.seed is None else case.seed
    with deterministic(seed + disturbance), quietly():
        loop = start_port(case, cpdir, live=True, noise=True, shuffle=True, max_steps=length, **changes)
        loop.run()
        end = _end(loop, cpdir)
    loop.accelerator.end_training()
    return end


def _end(loop: Loop, cpdir: Path) -> End:
    generators = {
        f"generator {name}": value for name, value in loop.generators().items() if value.dtype != torch.float64
    }
    state = loop.schedule.state_dict()
    schedule = {name: state[name] for name in ("last_epoch", "_step_count", "_last_lr")}
    weights = {name: value.detach().clone() for name, value in loop.objective.draft.named_parameters()}
    log = [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]
    return End(weights, adam_state(loop.objective.draft, loop.optimizer), generators, schedule, log)
