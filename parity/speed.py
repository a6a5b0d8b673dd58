"""Throughput: one optimizer step here, one there, over and over; wall time, and CPU time of all threads.

On a shared machine medians of one run after the other wander by 10 %; alternating steps and their minima do not. The
wall clock sees what sleeps and waits, the CPU clock what computes, whatever else runs on the cores.

The port may be at most a tenth slower, by either clock. What it was yesterday ``pytest benchmarks`` compares it with.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from parity.compare import RowKey
from parity.tolerances import Tolerance
from parity.verdict import Row, Speed

Steps = Callable[[], Iterator[Any]]
"""Starts a fresh run and yields after every optimizer step."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": time.process_time}


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


def prototype_rows(subject: RowKey, prototype: Times, port: Times, name: str, allowed: Tolerance) -> list[Row]:
    """Time per step of the port over that of ``name``, by both clocks; at most 1 / 0.9."""
    rows = []
    for clock in CLOCKS:
        low, high = interval(prototype, port, clock)
        faster = ratio(prototype, port, clock)
        detail = f"throughput is {faster:.2f}x the {name}'s, 95 % interval {low:.2f} to {high:.2f}"
        passed = 1 / faster <= allowed.bound
        rows.append(subject.row("throughput", f"{clock} time per step", 1 / faster, allowed.bound, passed, detail))
    return rows


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
