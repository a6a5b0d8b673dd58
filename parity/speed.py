"""Throughput: one optimizer step here, one there, over and over; wall time, and CPU time of all threads.

On a shared machine medians of one run after the other wander by 10 %; alternating steps and their minima do not. The
wall clock sees what sleeps and waits, the CPU clock what computes, whatever else runs on the cores.

Two gates. Against the prototype: the port may be at most a tenth slower, by either clock. Against its own baseline:
CPU time over that of a yardstick, a fixed mix of matrix products and small operators timed in the same run, so that a
faster or busier machine moves both.
"""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from parity.compare import Subject
from parity.environment import describe
from parity.errors import InputError
from parity.files import read_object
from parity.tolerances import Tolerance
from parity.verdict import Row, Speed, Status

Steps = Callable[[], Iterator[Any]]
"""Starts a fresh run and yields after every optimizer step."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.process_time}
YARDSTICK = "yardstick"
FORMAT = 1


@dataclass(frozen=True)
class Times:
    """Seconds of one side's optimizer steps, by clock, ``[round][step]``, and the FLOPs of one pass over them."""

    seconds: Mapping[str, Sequence[Sequence[float]]]
    flops: int = 0

    def best(self, clock: str, rounds: Sequence[int] | None = None) -> float:
        """Seconds of all steps, each step's the minimum over the rounds."""
        taken = self.seconds[clock]
        chosen = taken if rounds is None else [taken[i] for i in rounds]
        return sum(min(times) for times in zip(*chosen))

    @property
    def steps(self) -> int:
        return len(self.seconds["CPU"][0])

    def per_step(self, clock: str) -> tuple[float, ...]:
        """Seconds of one step, an entry a round."""
        return tuple(sum(times) / len(times) for times in self.seconds[clock])


def ratio(first: Times, second: Times, clock: str = "CPU") -> float:
    """First over second: above 1 the second side is faster."""
    return first.best(clock) / second.best(clock)


def interval(first: Times, second: Times, clock: str = "CPU", samples: int = 400) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio over rounds, from a fixed seed."""
    draw, rounds = random.Random(0), range(len(first.seconds[clock]))
    ratios = []
    for _ in range(samples):
        picked = draw.choices(rounds, k=len(rounds))
        ratios.append(first.best(clock, picked) / second.best(clock, picked))
    ratios.sort()
    return ratios[int(0.025 * samples)], ratios[int(0.975 * samples) - 1]


def alternate(sides: Mapping[str, Steps], steps: int, rounds: int) -> dict[str, Times]:
    """Run every side ``rounds`` times for ``steps`` optimizer steps, a step of each in turn, order turned every round.

    One further round, not timed, warms up and counts FLOPs.
    """
    flops = {name: _flops(side, steps) for name, side in sides.items()}
    taken: dict[str, dict[str, list[list[float]]]] = {name: {clock: [] for clock in CLOCKS} for name in sides}
    for number in range(rounds):
        running = {name: side() for name, side in sides.items()}
        for clocks in taken.values():
            for rows in clocks.values():
                rows.append([])
        order = list(running) if number % 2 == 0 else list(running)[::-1]
        for name in order * steps:
            for clock, seconds in timed(running[name]).items():
                taken[name][clock][-1].append(seconds)
    return {name: Times(taken[name], flops[name]) for name in sides}


def timed(running: Iterator[Any]) -> dict[str, float]:
    """Seconds of the next step, by clock."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    next(running)
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


def yardstick() -> Iterator[int]:
    """A fixed mix of matrix products and small operators, about as much of each as a small draft's step has."""
    draw = torch.Generator().manual_seed(0)
    rows, inner, vocabulary = (torch.randn(shape, generator=draw) for shape in ((352, 128), (128, 384), (128, 1024)))
    number = 0
    while True:
        for _ in range(6):
            hidden = (rows @ inner).relu() @ inner.T / 384
            (torch.log_softmax(hidden @ vocabulary, -1).sum(-1) + hidden.square().mean(-1)).mean()
        for _ in range(120):
            rows.mul(0.5).add(1.0).rsqrt_().nan_to_num_()
        number += 1
        yield number


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, also those that add to what is there, which torch's own list leaves out."""
    in_place = {torch.ops.aten.addmm_: _product_flops, torch.ops.aten.baddbmm_: _product_flops}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def _product_flops(total: Sequence[int], first: Sequence[int], second: Sequence[int], **_: object) -> int:
    """Of shapes [.., m, k] and [.., k, n], two for a multiply-add."""
    return 2 * math.prod(first) * second[-1]


def _flops(side: Steps, steps: int) -> int:
    counter = flop_counter()
    running = side()
    with counter:
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


def baseline_row(subject: Subject, port: Times, gauge: Times, stored: Baseline | None, tolerance: Tolerance) -> Row:
    """Gate two: the port's CPU time over the yardstick's against what was stored; at most a tenth more.

    A tenth less passes as stale: the baseline should be saved anew, or it will let the gain be lost again.
    """
    allowed, found = tolerance.bound, port.best("CPU") / gauge.best("CPU")
    expected = None if stored is None else stored.figures.get(subject.case)
    if stored is None or expected is None:
        missing = "no baseline" if stored is None else f"{stored.file} has no figure for this case"
        reason = f"{missing}: parity run --save-baseline FILE makes one, --baseline FILE compares with it"
        row = subject.row("baseline", "CPU time over the yardstick", found, None, True, reason)
        return Row(**{**vars(row), "status": Status.NOT_APPLICABLE})
    change = found / expected
    stale = f"stale, save the baseline anew: {1 / change:.2f} times as fast. " if change < 1 / allowed else ""
    detail = f"{stale}{found:.2f} yardsticks a step, {expected:.2f} in {stored.file}"
    return subject.row("baseline", "CPU time over the yardstick", change, allowed, change <= allowed, detail)


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


@dataclass(frozen=True)
class Baseline:
    """Stored figures: CPU time of a step over the yardstick's, by case."""

    file: Path
    figures: Mapping[str, float]


def save_baseline(file: Path, figures: Mapping[str, float]) -> None:
    """Write figures for ``--baseline``, with the machine they come from.

    Raises:
        InputError: the file cannot be written.
    """
    document = {"format_version": FORMAT, "cpu_over_yardstick": dict(figures), "environment": describe()}
    try:
        file.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise InputError(file, "--save-baseline", error.strerror or str(error), "a file that can be written") from error


def read_baseline(file: Path) -> Baseline:
    """What :func:`save_baseline` wrote.

    Raises:
        InputError: missing, damaged, or of another format.
    """
    document = read_object(file, "a baseline that parity run --save-baseline wrote")
    if document.get("format_version") != FORMAT:
        raise InputError(file, "format_version", document.get("format_version"), FORMAT)
    figures = document.get("cpu_over_yardstick")
    if not isinstance(figures, dict) or not all(_positive(value) for value in figures.values()):
        raise InputError(file, "cpu_over_yardstick", repr(figures)[:80], "positive numbers by case")
    return Baseline(file, {name: float(value) for name, value in figures.items()})


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
