"""Checks that run a side again: saved and reopened, stopped and resumed, timed beside the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import copy_weights, state_of, tensors_of, whole
from parity.compare import compare_groups, compare_series
from parity.environment import deterministic
from parity.names import NameMap
from parity.observe import drawing
from parity.ranks import one_folder, reduced
from parity.setup import attention_row, setting_rows, setup_of
from parity.side import Rerunnable, Training, fresh_module
from parity.speed import Steps, alternate, prototype_rows, speed_of
from parity.trace_pair import TracePair
from parity.verdict import Row

TIMED_STEPS, ROUNDS = 5, 7
MOVED = 2.0**-6


def round_trip_rows(evidence: TracePair) -> list[Row]:
    """One step, save, open: the same state to the bit, the same loss, parameters trained and attention.

    The step starts from what no build gives, see :func:`move`: what is not in the checkpoint cannot open right.
    """
    return _everywhere(evidence, _round_trip)


def _everywhere(evidence: TracePair, rows: Callable[[TracePair, Rerunnable], list[Row]]) -> list[Row]:
    """On every rank of the side; of each row the worst."""
    assert evidence.alive is not None
    found = evidence.alive.everywhere(partial(rows, evidence))
    return [max(each, key=lambda row: not row.passed) for each in zip(*found)]


def _round_trip(evidence: TracePair, alive: Rerunnable) -> list[Row]:
    subject, exact = evidence.subject("round_trip"), evidence.tolerance("round_trip")
    with deterministic(alive.case.seed):
        with _drawing(alive):
            module = _begun(alive, 1).module
        reopened = _reopened(alive, module)
        states = state_of(module), state_of(reopened)
        rows = compare_groups(subject, "round_trip", *states, exact) if any(states) else []
        said = setting_rows(subject, setup_of(module), setup_of(reopened), NameMap())
        rows += [attention_row(row, module, reopened) for row in said]
        losses = [[_loss(alive, each)] for each in (module, reopened)]
    return [*rows, compare_series(subject, "round_trip", "loss", losses[0], losses[1], exact)]


def resume_rows(evidence: TracePair) -> list[Row]:
    """A run that stops half way, is saved, opened in a fresh build and goes on: the same to the bit in everything.

    Both runs start from what no build gives, as in ``round_trip``.
    """
    return _everywhere(evidence, _resume)


def _resume(evidence: TracePair, alive: Rerunnable) -> list[Row]:
    subject, exact = evidence.subject("resume"), evidence.tolerance("resume")
    end = max(2, alive.case.steps)
    with deterministic(alive.case.seed):
        with _drawing(alive):
            straight = _begun(alive, end)
        if not all(hasattr(part, "state_dict") for part in straight.parts):
            return [subject.inapplicable("the optimizer or the schedule has no state_dict to go on from")]
        with _drawing(alive):
            resumed = _resumed(alive, _begun(alive, end // 2))
            resumed.run(alive.case.batches, end)
        states = _everything(straight), _everything(resumed)
        rows = compare_groups(subject, "resume", *states, exact) if any(states) else []
    for name in ("loss", "grad_norm", "lr_after") if straight.optimizer is not None else ("loss",):
        mine, theirs = ([getattr(point, name) for point in run.points] for run in (straight, resumed))
        rows.append(compare_series(subject, "resume", name, mine, theirs, exact))
    return rows


def _drawing(alive: Rerunnable) -> AbstractContextManager[object]:
    """What the run drew, drawn again from its beginning; a run of one step has too little for two."""
    replayed = alive.case.replayed if alive.case.steps > 1 else {}
    return drawing(alive.case.draws, replayed)


def _begun(alive: Rerunnable, steps: int) -> Training:
    """So many steps from moved weights, seeded like every other run."""
    set_seed(alive.case.seed)
    move(module := fresh_module(alive.side, alive.case.weights))
    training = Training(alive.side, module)
    alive.side.seed(alive.case.seed)
    training.run(alive.case.batches, steps)
    return training


@torch.no_grad()
def move(module: nn.Module) -> None:
    """Change what a checkpoint holds, in place: times 1 + 2**-6, and 2**-6 where it is 0; what is tied stays tied.

    That is floating parameters that train, all of them where none does, and saved buffers. What is frozen beside
    others may come from elsewhere, a verifier for example, and stays.
    """
    saved, parameters = module.state_dict(), [*module.parameters()]
    values = [value for value in parameters if value.requires_grad] or parameters
    for value in [*values, *(value for name, value in module.named_buffers() if name in saved)]:
        if value.is_floating_point():
            value.copy_(torch.where(value == 0, MOVED, value * (1 + MOVED)))


def _reopened(alive: Rerunnable, module: nn.Module) -> nn.Module:
    """Saved and opened. What is frozen and opens as NaN is loaded from elsewhere, a verifier's: it is given again."""
    with one_folder() as folder:
        alive.side.write(module, folder)
        reopened = alive.side.read(folder)
    opened, held = dict(reopened.named_parameters()), dict(module.named_parameters())
    frozen = {name: whole(value) for name, value in held.items() if name in opened and not value.requires_grad}
    copy_weights(reopened, {name: value for name, value in frozen.items() if bool(opened[name].isnan().any())})
    return reopened


def _resumed(alive: Rerunnable, stopped: Training) -> Training:
    """A fresh build with the saved weights, optimizer, schedule and the generators of that moment."""
    with torch.random.fork_rng(), tempfile.TemporaryFile() as file:
        resumed = Training(alive.side, _reopened(alive, stopped.module))
        torch.save([part.state_dict() for part in stopped.parts], file)
        file.seek(0)
        for part, state in zip(resumed.parts, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
    resumed.points += stopped.points
    return resumed


def _everything(training: Training) -> dict[str, Tensor]:
    """Parameters, buffers, and the optimizer's tensors, wherever its state has them."""
    state = {} if training.optimizer is None else tensors_of(training.optimizer.state_dict(), "optimizer")
    return {**state_of(training.module), **{name: whole(value) for name, value in state.items()}}


def _loss(alive: Rerunnable, module: nn.Module) -> float:
    alive.side.seed(alive.case.seed)
    with torch.no_grad(), _drawing(alive):
        return float(alive.side.loss(module, alive.case.batches[0]))


def unobserved_loss(alive: Rerunnable) -> float:
    """The first loss of the run, made once more in a fresh build by a side that nothing looks at.

    What the other side drew takes the place of this one's draws, which nothing else touches.
    """
    return float(reduced(alive.everywhere(_plain_loss), alive.side.reduce))


def _plain_loss(alive: Rerunnable) -> float:
    case, side = alive.case, alive.side
    with deterministic(case.seed):
        module = side.wrapped(fresh_module(side, case.weights))
        side.seed(case.seed)
        with (
            drawing(case.draws, case.replayed) if case.replayed else nullcontext(),
            torch.set_grad_enabled(side.backward),
        ):
            return float(side.loss(module, case.batches[0]).detach())


def throughput_rows(evidence: TracePair) -> list[Row]:
    """Time per optimizer step of the port over the original's, by both clocks, alternating, one thread."""
    assert evidence.original is not None
    assert evidence.alive is not None
    sides = {"original": evidence.original, "port": evidence.alive}
    with deterministic(evidence.alive.case.seed):
        times = alternate({name: _steps(alive) for name, alive in sides.items()}, TIMED_STEPS, ROUNDS)
    names = evidence.expected.run, evidence.found.run
    evidence.speeds.append(speed_of(evidence.found.case, times["original"], times["port"], names, tokens=0))
    subject, allowed = evidence.subject("throughput"), evidence.tolerance("throughput")
    return prototype_rows(subject, times["original"], times["port"], names[0], allowed)


def _steps(alive: Rerunnable) -> Steps:
    def run() -> Iterator[int]:
        training = _begun(alive, 0)
        while True:
            training.run(alive.case.batches, len(training.points) + 1)
            yield len(training.points)

    return run
