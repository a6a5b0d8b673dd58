"""Time two training loops against each other: one optimizer step here, one there, over and over.

On a shared machine medians of one run after the other wander by 10 %; alternating steps and their minima do not. Time
is the thread's CPU time, so that another process on the core does not count.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

Steps = Callable[[], Iterator[int]]
"""Starts a fresh run and yields after every optimizer step."""


@dataclass(frozen=True)
class Timings:
    """CPU seconds of the same optimizer steps on both sides, ``[round][step]``, and the FLOPs of one pass over them."""

    first: list[list[float]]
    second: list[list[float]]
    first_flops: int
    second_flops: int

    def best(self, side: list[list[float]], rounds: list[int] | None = None) -> float:
        """Seconds of all steps, each step's the minimum over the rounds."""
        chosen = side if rounds is None else [side[i] for i in rounds]
        return sum(min(times) for times in zip(*chosen))

    @property
    def ratio(self) -> float:
        """First over second: above 1 the second side is faster."""
        return self.best(self.first) / self.best(self.second)

    def interval(self, samples: int = 400) -> tuple[float, float]:
        """95 % bootstrap interval of the ratio over rounds, from a fixed seed."""
        draw, rounds = random.Random(0), range(len(self.first))
        ratios = []
        for _ in range(samples):
            picked = draw.choices(rounds, k=len(rounds))
            ratios.append(self.best(self.first, picked) / self.best(self.second, picked))
        ratios.sort()
        return ratios[int(0.025 * samples)], ratios[int(0.975 * samples) - 1]


def alternate(first: Steps, second: Steps, steps: int, rounds: int) -> Timings:
    """Run both sides ``rounds`` times for ``steps`` optimizer steps, a step of each in turn, order swapped every round.

    One further round, not timed, warms up and counts FLOPs.
    """
    flops = [_flops(side, steps) for side in (first, second)]
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(rounds):
        running = (first(), second())
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(steps):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                taken[side].append(_timed(running[side]))
        for side in (0, 1):
            times[side].append(taken[side])
    return Timings(times[0], times[1], flops[0], flops[1])


def _timed(running: Iterator[int]) -> float:
    start = time.thread_time()
    next(running)
    return time.thread_time() - start


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, also those that add to what is there, which torch's own list leaves out."""
    in_place = {torch.ops.aten.addmm_: _product_flops, torch.ops.aten.baddbmm_: _product_flops}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def _product_flops(total: Sequence[int], first: Sequence[int], second: Sequence[int], **_: object) -> int:
    """Of shapes [.., m, k] and [.., k, n], two for a multiply-add."""
    return 2 * math.prod(first) * second[-1]


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts it in KiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _flops(side: Steps, steps: int) -> int:
    counter = flop_counter()
    running = side()
    with counter:
        for _ in range(steps):
            next(running)
    return counter.get_total_flops()
