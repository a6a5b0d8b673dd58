"""One optimizer step at h 512, V 32768, D 8192, on one thread in float32: seconds of thread CPU time, minima count.

The numbers of a shape count only if the port agrees with the reference there; that is checked first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.conftest import CaseOf
from parity.case import Case
from parity.runs.port import start_port
from parity.runs.reference.loop import Run
from parity.runs.reference.setup import prepare

LENGTHS = (256, 1024)
STEPS = 3


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.benchmark(timer=time.thread_time)
def test_step(
    algorithm: str, length: int, case_of: CaseOf, side: Callable[[Case], Iterator[int]], benchmark: Any, tmp_path: Path
) -> None:
    case = case_of(algorithm, length, 3)
    assert_same_loss(case, tmp_path / "check")
    running = side(case)
    next(running)
    benchmark.extra_info["tokens"] = length
    benchmark.pedantic(lambda: next(running), rounds=STEPS)


def assert_same_loss(case: Case, cpdir: Path) -> None:
    """First loss of the port and of the reference, on the weights and the batch that are timed."""
    batch = next(iter((loop := start_port(case, cpdir)).loader))
    with torch.no_grad():
        port = float(loop.objective(batch).loss)
    run = Run(prepare(case))
    next(run.optimizer_steps())
    assert port == pytest.approx(run.trace.curve[0].loss, rel=5e-6)
