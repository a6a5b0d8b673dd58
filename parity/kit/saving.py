"""Is what is saved what was trained, and is a resumed run the one that was never stopped?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import state_of
from parity.compare import Subject, compare_groups, compare_series
from parity.environment import deterministic
from parity.kit.side import Side
from parity.kit.terms import Terms
from parity.kit.tracing import start
from parity.kit.training import Training
from parity.trace import Point
from parity.verdict import Row


def round_trip_rows(side: Side, terms: Terms) -> list[Row]:
    """One step, save, open: the same state to the bit, and the same loss."""
    subject, exact = Subject("round_trip", terms.case, side.name), terms.table["round_trip"]
    with deterministic(terms.seed), tempfile.TemporaryDirectory() as folder:
        training = Training(side, start(side, terms.weights))
        training.run(terms.batches, 1)
        try:
            reopened = _through(side, training.module, Path(folder))
        except Exception as error:  # whatever the user's own code raises
            return [refused(subject, error)]
        rows = compare_groups(subject, "round_trip", state_of(training.module), state_of(reopened), exact)
        expected, found = (_loss(side, module, terms) for module in (training.module, reopened))
    return [*rows, compare_series(subject, "round_trip", "loss", [expected], [found], exact)]


def resume_rows(side: Side, terms: Terms) -> list[Row]:
    """A run that stops half way, is saved, opened in a fresh build and goes on: the same to the bit in everything."""
    subject, exact = Subject("resume", terms.case, side.name), terms.table["resume"]
    end = max(2, terms.steps)
    with deterministic(terms.seed), tempfile.TemporaryDirectory() as folder:
        straight, expected = _run(side, terms, end)
        stopped, found = _run(side, terms, end // 2)
        try:
            resumed = _resumed(side, stopped, Path(folder))
            found += resumed.run(terms.batches, end)
        except Exception as error:  # whatever the user's own code raises
            return [refused(subject, error)]
        rows = compare_groups(subject, "resume", _everything(straight), _everything(resumed), exact)
    for name in ("loss", "grad_norm", "lr_after"):
        mine, theirs = ([float(getattr(point, name)) for point in points] for points in (expected, found))
        rows.append(compare_series(subject, "resume", name, mine, theirs, exact))
    return rows


def _run(side: Side, terms: Terms, steps: int) -> tuple[Training, list[Point]]:
    """From the beginning, seeded like every other run."""
    set_seed(terms.seed)
    training = Training(side, start(side, terms.weights))
    set_seed(terms.seed)
    return training, training.run(terms.batches, steps)


def refused(subject: Subject, error: Exception) -> Row:
    """A row for code that raised."""
    return subject.row("refused", "", None, 0.0, False, f"{type(error).__name__}: {str(error)[:300]}")


def _through(side: Side, module: nn.Module, folder: Path) -> nn.Module:
    side.write(module, folder)
    return side.read(folder)


def _resumed(side: Side, stopped: Training, folder: Path) -> Training:
    """A fresh build with the saved weights, optimizer, schedule and the generators of that moment."""
    state = {"optimizer": stopped.optimizer.state_dict(), "random": torch.get_rng_state()}
    state["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    if stopped.schedule is not None:
        state["schedule"] = stopped.schedule.state_dict()
    torch.save(state, folder / "training.pt")
    side.write(stopped.module, folder)
    resumed = Training(side, side.read(folder))
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


def _loss(side: Side, module: nn.Module, terms: Terms) -> float:
    set_seed(terms.seed)
    with torch.no_grad():
        return float(side.loss(module, terms.batches[0]))
