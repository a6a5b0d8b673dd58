"""Is the port as fast? Alternating optimizer steps, minima, thread CPU time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from parity.compare import Subject
from parity.environment import deterministic
from parity.kit.side import Side
from parity.kit.terms import Terms
from parity.kit.tracing import start
from parity.kit.training import Training
from parity.timing import Steps, Timings, alternate
from parity.verdict import Row, Speed

STEPS, ROUNDS = 5, 7


def measure(original: Side, port: Side, terms: Terms) -> Timings:
    """Whole optimizer steps of both sides on the same batches, one thread."""
    with deterministic(terms.seed):
        return alternate(_steps(original, terms, {}), _steps(port, terms, terms.weights), STEPS, ROUNDS)


def _steps(side: Side, terms: Terms, weights: Mapping[str, Tensor]) -> Steps:
    def run() -> Iterator[int]:
        training = Training(side, start(side, weights))
        while True:
            training.run(terms.batches, training.steps + 1)
            yield training.steps

    return run


def judge_timings(timings: Timings, terms: Terms, names: tuple[str, str]) -> tuple[Row, Speed]:
    """Time per step of the port over the original's."""
    low, high = timings.interval()
    slowdown, allowed = 1 / timings.ratio, terms.table["throughput"].bound
    detail = f"throughput is {timings.ratio:.2f}x the original's, 95 % interval {low:.2f} to {high:.2f}"
    subject = Subject("throughput", terms.case, names[1])
    row = subject.row("throughput", "time per step", slowdown, allowed, slowdown <= allowed, detail)
    first, second = (tuple(sum(times) / STEPS for times in side) for side in (timings.first, timings.second))
    flops = timings.first_flops // STEPS, timings.second_flops // STEPS
    return row, Speed(terms.case, *names, first, second, *flops, timings.ratio, (low, high), tokens=0)
