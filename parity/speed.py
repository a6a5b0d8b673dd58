"""Throughput: one optimizer step here, one there, over and over; wall time, and CPU time of all threads.

On a shared machine medians of one run after the other wander by 10 %; alternating steps and their minima do not. The
wall clock sees what sleeps and waits, the CPU clock what computes, whatever else runs on the cores.

Two gates. Against the prototype: the port may be at most a tenth slower, by either clock. Against its own baseline:
CPU time over that of a yardstick, a fixed mix of matrix products and small operators timed in the same run, so that a
faster or busier machine moves both.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch.utils.flop_counter import FlopCounterMode

from parity.compare import Subject
from parity.environment import describe
from parity.files import read_object, validated, write_whole
from parity.tolerances import Tolerance
from parity.verdict import Row, Speed, Status

Steps = Callable[[], Iterator[Any]]
"""Starts a fresh run and yields after every optimizer step."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.process_time}
YARDSTICK = "yardstick"

Figures = Mapping[str, float]
"""By case, CPU time of a step over the yardstick's."""


@dataclass(frozen=True)
class Times:
    """Seconds of one side's optimizer steps, by clock, ``[round][step]``, and the FLOPs of one pass over them."""

    seconds: Mapping[str, Sequence[Sequence[float]]]
    flops: int = 0

    def best(self, clock: str, rounds: Any = slice(None)) -> Any:
        """Seconds of all steps, each step's the minimum over the rounds; one number for each row of ``rounds``."""
        return np.asarray(self.seconds[clock])[rounds].min(axis=-2).sum(axis=-1)

    @property
    def steps(self) -> int:
        return len(self.seconds["CPU"][0])

    def per_step(self, clock: str) -> tuple[float, ...]:
        """Seconds of one step, an entry a round."""
        return tuple(map(float, np.mean(self.seconds[clock], axis=1)))


def ratio(first: Times, second: Times, clock: str = "CPU") -> float:
    """First over second: above 1 the second side is faster."""
    return float(first.best(clock) / second.best(clock))


def interval(first: Times, second: Times, clock: str = "CPU", samples: int = 400) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio over rounds, from a fixed seed."""
    number = len(first.seconds[clock])
    rounds = np.random.default_rng(0).integers(number, size=(samples, number))
    low, high = np.quantile(first.best(clock, rounds) / second.best(clock, rounds), (0.025, 0.975))
    return float(low), float(high)


def alternate(sides: Mapping[str, Steps], steps: int, rounds: int) -> dict[str, Times]:
    """Run every side ``rounds`` times for ``steps`` optimizer steps, a step of each in turn, order turned every round.

    One further round, not timed, warms up and counts FLOPs.
    """
    flops = {name: _flops(side, steps) for name, side in sides.items()}
    taken = {name: {clock: [[0.0] * steps for _ in range(rounds)] for clock in CLOCKS} for name in sides}
    for turn in range(rounds):
        running = {name: side() for name, side in sides.items()}
        order = list(running)[:: 1 if turn % 2 == 0 else -1]
        for step, name in product(range(steps), order):
            begin = {clock: read() for clock, read in CLOCKS.items()}
            next(running[name])
            for clock, read in CLOCKS.items():
                taken[name][clock][turn][step] = read() - begin[clock]
    return {name: Times(taken[name], flops[name]) for name in sides}


def yardstick() -> Iterator[int]:
    """A fixed mix of matrix products and small operators, about as much of each as a small draft's step has."""
    draw = torch.Generator().manual_seed(0)
    rows, inner, vocabulary = (torch.randn(shape, generator=draw) for shape in ((352, 128), (128, 384), (128, 1024)))
    for number in count(1):
        for _ in range(6):
            hidden = (rows @ inner).relu() @ inner.T / 384
            (torch.log_softmax(hidden @ vocabulary, -1).sum(-1) + hidden.square().mean(-1)).mean()
        for _ in range(120):
            rows.mul(0.5).add(1.0).rsqrt_().nan_to_num_()
        yield number


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, also those that add to what is there, which torch's own list leaves out."""
    in_place = {torch.ops.aten.addmm_: _product_flops, torch.ops.aten.baddbmm_: _product_flops}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def _product_flops(total: Sequence[int], first: Sequence[int], second: Sequence[int], **_: object) -> int:
    """Of shapes [.., m, k] and [.., k, n], two for a multiply-add."""
    return 2 * math.prod(first) * second[-1]


def _flops(side: Steps, steps: int) -> int:
    running = side()
    with flop_counter() as counter:
        for _ in range(steps):
            next(running)
    return counter.get_total_flops()


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts it in KiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def prototype_rows(subject: Subject, prototype: Times, port: Times, name: str, allowed: Tolerance) -> list[Row]:
    """Gate one: time per step of the port over that of ``name``, by both clocks; at most 1 / 0.9."""
    rows = []
    for clock in CLOCKS:
        low, high = interval(prototype, port, clock)
        faster = ratio(prototype, port, clock)
        detail = f"throughput is {faster:.2f}x the {name}'s, 95 % interval {low:.2f} to {high:.2f}"
        passed = 1 / faster <= allowed.bound
        rows.append(subject.row("throughput", f"{clock} time per step", 1 / faster, allowed.bound, passed, detail))
    return rows


def baseline_row(subject: Subject, port: Times, gauge: Times, stored: Figures | None, tolerance: Tolerance) -> Row:
    """Gate two: the port's CPU time over the yardstick's against what was stored; at most a tenth more.

    A tenth less passes as stale: the baseline should be saved anew, or it will let the gain be lost again.
    """
    quantity, allowed, found = "CPU time over the yardstick", tolerance.bound, ratio(port, gauge)
    if stored is None or subject.case not in stored:
        missing = "no baseline" if stored is None else "the baseline has no figure for this case"
        reason = f"{missing}: parity run --save-baseline FILE makes one, --baseline FILE compares with it"
        return replace(subject.row("baseline", quantity, found, None, True, reason), status=Status.NOT_APPLICABLE)
    expected = stored[subject.case]
    change = found / expected
    stale = f"stale, save the baseline anew: {1 / change:.2f} times as fast. " if change < 1 / allowed else ""
    detail = f"{stale}{found:.2f} yardsticks a step, {expected:.2f} in the baseline"
    return subject.row("baseline", quantity, change, allowed, change <= allowed, detail)


def speed_of(case: str, prototype: Times, port: Times, names: tuple[str, str], tokens: int) -> Speed:
    """What a report draws: one entry a round, CPU seconds per optimizer step."""
    return Speed(
        case=case,
        prototype=names[0],
        port=names[1],
        prototype_seconds=prototype.per_step("CPU"),
        port_seconds=port.per_step("CPU"),
        prototype_flops=prototype.flops // prototype.steps,
        port_flops=port.flops // port.steps,
        ratio=ratio(prototype, port),
        interval=interval(prototype, port),
        tokens=tokens,
    )


class Stored(BaseModel):
    """A baseline as a file has it."""

    format_version: Literal[1]
    cpu_over_yardstick: dict[str, Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]]
    environment: dict[str, Any] = {}


def save_baseline(file: Path, figures: Figures) -> None:
    """Write figures for ``--baseline``, with the machine they come from; InputError where that cannot be."""
    document = Stored(format_version=1, cpu_over_yardstick=dict(figures), environment=describe())
    write_whole(file, document.model_dump_json(indent=1) + "\n")


def read_baseline(file: Path) -> dict[str, float]:
    """The figures that :func:`save_baseline` wrote.

    Raises:
        InputError: missing, damaged, or of another format.
    """
    stored: Stored = validated(file, Stored, read_object(file, "a baseline that parity run --save-baseline wrote"))
    return stored.cpu_over_yardstick
