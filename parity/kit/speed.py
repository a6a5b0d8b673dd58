"""Is the port as fast? Alternating optimizer steps, minima, by both clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from parity.compare import Subject
from parity.environment import deterministic
from parity.kit.side import Side
from parity.kit.terms import Terms
from parity.kit.tracing import start
from parity.kit.training import Training
from parity.speed import Steps, Times, alternate, prototype_rows, speed_of
from parity.verdict import Row, Speed

STEPS, ROUNDS = 5, 7


def measure(original: Side, port: Side, terms: Terms) -> dict[str, Times]:
    """Whole optimizer steps of both sides on the same batches, one thread."""
    with deterministic(terms.seed):
        sides = {"original": _steps(original, terms, {}), "port": _steps(port, terms, terms.weights)}
        return alternate(sides, STEPS, ROUNDS)


def _steps(side: Side, terms: Terms, weights: Mapping[str, Tensor]) -> Steps:
    def run() -> Iterator[int]:
        training = Training(side, start(side, weights))
        while True:
            training.run(terms.batches, training.steps + 1)
            yield training.steps

    return run


def judge_timings(times: Mapping[str, Times], terms: Terms, names: tuple[str, str]) -> tuple[list[Row], Speed]:
    """Time per step of the port over the original's, by both clocks."""
    subject = Subject("throughput", terms.case, names[1])
    rows = prototype_rows(subject, times["original"], times["port"], names[0])
    return rows, speed_of(terms.case, times["original"], times["port"], names, tokens=0)
