"""Seconds of one optimizer step, forward to Adam; pytest-benchmark's ``min`` is the figure that counts.

The sides step in turn in processes of their own, see :mod:`benchmarks.race`; here their times are handed to
pytest-benchmark. Times count only where the losses of the same weights and batch agree, which is asserted first.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Races
from benchmarks.race import Measured
from benchmarks.shapes import Shape

CLOSE = {"fp32": 5e-6, "bf16": 2e-2}
SAME_LOSS = {"port eager": "reference", "port": "reference", "port chain": "speculators"}
"""The original's own loss is held against the port's in the parity run."""


CLOCK = [0.0]
"""A timer's reading, which moves by what was measured elsewhere."""


@pytest.mark.benchmark(timer=lambda: CLOCK[0])
def test_step(shape: Shape, side: str, races: Races, benchmark: Any) -> None:
    measured = races(shape)
    assert_same_loss(measured, side, CLOSE[shape.dtype])
    replay = iter(measured[side].seconds)

    def step() -> None:
        CLOCK[0] += next(replay)

    said = measured[side].as_json()
    assert (said["fraction_of_gemm_peak"] or 0) < 1, "faster than the machine: not all tokens were trained on"
    benchmark.extra_info.update(said)
    benchmark.pedantic(step, rounds=len(measured[side].seconds), iterations=1)


def assert_same_loss(measured: dict[str, Measured], side: str, close: float) -> None:
    """Of ``side`` and of who computes the same; "port eager" stands in where there is no reference."""
    other = next((name for name in (SAME_LOSS.get(side), "port eager") if name in measured and name != side), None)
    if other is not None and side in SAME_LOSS:
        assert measured[side].loss == pytest.approx(measured[other].loss, rel=close), f"{side} and {other}"
