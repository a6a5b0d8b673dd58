"""Final losses over seeds: is the port's bfloat16 training equivalent to the prototype's, given how that one varies?"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import t as student

from parity.compare import Subject
from parity.prototypes.case import Case
from parity.prototypes.port import trace_port
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.synthetic import write_case
from parity.trace import Trace
from parity.verdict import Row

SEEDS = (1, 2, 3, 4, 5, 6)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean loss of the last pass under each seed: the prototype's and the port's, on the same order and noise."""

    prototype: tuple[float, ...]
    port: tuple[float, ...]

    @property
    def bound(self) -> float:
        """How far apart two runs of the prototype are: the standard deviation over seeds; 0 if one diverged."""
        return statistics.stdev(self.prototype) if all(map(math.isfinite, self.prototype)) else 0.0

    @property
    def reach(self) -> float:
        """The far end of the 90 % interval of the mean paired difference, in absolute value."""
        gaps = [port - prototype for prototype, port in zip(self.prototype, self.port)]
        if not all(map(math.isfinite, gaps)):
            return math.inf
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        return abs(statistics.fmean(gaps)) + float(student.ppf(CONFIDENCE, len(gaps) - 1)) * error


def final_loss(trace: Trace) -> float:
    """Mean loss of the last pass."""
    last = trace.curve[-1].epoch
    return statistics.fmean(point.loss for point in trace.curve if point.epoch == last)


def bf16_reference(case: Case) -> Trace:
    """The prototype as launched: bfloat16 weights with float32 masters."""
    return trace_reference(case, torch.bfloat16)


def measure_spread(
    case: Case, prototype: Callable[[Case], Trace] = bf16_reference, seeds: Sequence[int] = SEEDS
) -> Spread:
    """Run both sides under every seed, with shuffling and noise on, from the case's weights."""
    pairs = [_pair(case, prototype, seed) for seed in seeds]
    return Spread(tuple(first for first, _ in pairs), tuple(second for _, second in pairs))


def _pair(case: Case, prototype: Callable[[Case], Trace], seed: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        seeded = write_case(
            Path(folder),
            case.fixture,
            f"{case.name}_seed{seed}",
            algorithm=case.algorithm,
            dtype=case.dtype,
            k=case.ttt_steps,
            bs=case.bs,
            epoch=case.epoch,
            lr=case.lr,
            noise=True,
            shuffle=True,
            seed=seed,
            initial=case.initial,
        )
        return final_loss(prototype(seeded)), final_loss(trace_port(seeded))


def judge_spread(case: Case, spread: Spread) -> Row:
    """Two one-sided tests (Schuirmann 1987): the mean difference lies within the prototype's own spread at 95 %."""
    measured = spread.reach / spread.bound if spread.bound else float("inf")
    detail = (
        f"mean of the last pass over {len(spread.port)} seeds: prototype {statistics.fmean(spread.prototype):.4f} "
        f"+- {spread.bound:.4f}, port {statistics.fmean(spread.port):.4f}; paired difference reaches {spread.reach:.4f}"
    )
    subject = Subject("equivalence", case.name, "port")
    return subject.row("final_loss", "last pass", measured, 1.0, measured <= 1.0, detail)
