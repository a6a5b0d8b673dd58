"""Checks that run a side again: saved and reopened, stopped and resumed, timed beside the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import state_of
from parity.compare import compare_groups, compare_series
from parity.environment import deterministic
from parity.evidence import Evidence, raised
from parity.side import Alive, Training, start
from parity.speed import Steps, alternate, prototype_rows, speed_of
from parity.trace import Point
from parity.verdict import Row

TIMED_STEPS, ROUNDS = 5, 7


def round_trip_rows(evidence: Evidence) -> list[Row]:
    """One step, save, open: the same state to the bit, and the same loss."""
    alive: Alive = evidence.live
    subject, exact = evidence.subject("round_trip"), evidence.tolerance("round_trip")
    with deterministic(alive.case.seed), tempfile.TemporaryDirectory() as folder:
        training, _ = _run(alive, 1)
        try:
            reopened = _through(alive, training.module, Path(folder))
        except Exception as error:  # whatever the user's own code raises
            return [raised(subject, error)]
        rows = compare_groups(subject, "round_trip", state_of(training.module), state_of(reopened), exact)
        losses = [[_loss(alive, module)] for module in (training.module, reopened)]
    return [*rows, compare_series(subject, "round_trip", "loss", losses[0], losses[1], exact)]


def resume_rows(evidence: Evidence) -> list[Row]:
    """A run that stops half way, is saved, opened in a fresh build and goes on: the same to the bit in everything."""
    alive: Alive = evidence.live
    subject, exact = evidence.subject("resume"), evidence.tolerance("resume")
    end = max(2, alive.case.steps)
    with deterministic(alive.case.seed), tempfile.TemporaryDirectory() as folder:
        straight, expected = _run(alive, end)
        stopped, found = _run(alive, end // 2)
        try:
            resumed = _resumed(alive, stopped, Path(folder))
            found += resumed.run(alive.case.batches, end)
        except Exception as error:  # whatever the user's own code raises
            return [raised(subject, error)]
        rows = compare_groups(subject, "resume", _everything(straight), _everything(resumed), exact)
    for name in ("loss", "grad_norm", "lr_after"):
        mine, theirs = ([float(getattr(point, name)) for point in points] for points in (expected, found))
        rows.append(compare_series(subject, "resume", name, mine, theirs, exact))
    return rows


def _run(alive: Alive, steps: int) -> tuple[Training, list[Point]]:
    """From the beginning, seeded like every other run."""
    set_seed(alive.case.seed)
    training = Training(alive.side, start(alive.side, alive.case.weights))
    set_seed(alive.case.seed)
    return training, training.run(alive.case.batches, steps)


def _through(alive: Alive, module: nn.Module, folder: Path) -> nn.Module:
    alive.side.write(module, folder)
    return alive.side.read(folder)


def _resumed(alive: Alive, stopped: Training, folder: Path) -> Training:
    """A fresh build with the saved weights, optimizer, schedule and the generators of that moment."""
    state = {"optimizer": stopped.optimizer.state_dict(), "random": torch.get_rng_state()}
    state["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    if stopped.schedule is not None:
        state["schedule"] = stopped.schedule.state_dict()
    torch.save(state, folder / "training.pt")
    resumed = Training(alive.side, _through(alive, stopped.module, folder))
    stored = torch.load(folder / "training.pt", weights_only=True)
    resumed.optimizer.load_state_dict(stored["optimizer"])
    if resumed.schedule is not None:
        resumed.schedule.load_state_dict(stored["schedule"])
    resumed.steps = stopped.steps
    torch.set_rng_state(stored["random"])
    if stored["cuda"]:
        torch.cuda.set_rng_state_all(stored["cuda"])
    return resumed


def _everything(training: Training) -> dict[str, Tensor]:
    """Parameters, buffers, and the optimizer's tensors by the number of their parameter."""
    state: dict[int, dict[str, Any]] = training.optimizer.state_dict()["state"]
    optimizer = {f"optimizer.{n}.{name}": value for n, entries in state.items() for name, value in entries.items()}
    tensors = {name: value for name, value in optimizer.items() if isinstance(value, Tensor)}
    return {**state_of(training.module), **tensors}


def _loss(alive: Alive, module: nn.Module) -> float:
    set_seed(alive.case.seed)
    with torch.no_grad():
        return float(alive.side.loss(module, alive.case.batches[0]))


def throughput_rows(evidence: Evidence) -> list[Row]:
    """Time per optimizer step of the port over the original's, by both clocks, alternating, one thread."""
    sides = {"original": evidence.original, "port": evidence.live}
    with deterministic(evidence.live.case.seed):
        times = alternate({name: _steps(alive) for name, alive in sides.items()}, TIMED_STEPS, ROUNDS)
    names = evidence.expected.run, evidence.found.run
    evidence.speeds.append(speed_of(evidence.found.case, times["original"], times["port"], names, tokens=0))
    subject, allowed = evidence.subject("throughput"), evidence.tolerance("throughput")
    return prototype_rows(subject, times["original"], times["port"], names[0], allowed)


def _steps(alive: Alive) -> Steps:
    def run() -> Iterator[int]:
        training = Training(alive.side, start(alive.side, alive.case.weights))
        while True:
            training.run(alive.case.batches, training.steps + 1)
            yield training.steps

    return run
