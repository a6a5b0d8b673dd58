"""One side in a process of its own, so that peak memory is its own.

Where no GPU is timed, seconds are the process' CPU time over its threads: another process on the core does not count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils import patch_environment
from torch.utils import deterministic as determinism

import ports  # noqa: F401  (its guard runs before anything imports transformers)
from benchmarks.shapes import Shape, build_case
from benchmarks.sides import SIDES
from parity.environment import deterministic, quietly
from parity.speed import flop_counter, peak_bytes

PEAK_SIZE = 2048
_RUNNING: list[Iterator[dict[str, float]]] = []


def start(side: str, shape: Shape, steps: int, fixtures: Path) -> dict[str, float]:
    """Make this process run a side: the first step's loss, which warms up, FLOPs and memory."""
    _RUNNING[:] = [measure(side, shape, steps, fixtures)]
    return step()


def step() -> dict[str, float]:
    """Seconds and memory of the next step."""
    return next(_RUNNING[0])


def measure(side: str, shape: Shape, steps: int, fixtures: Path) -> Iterator[dict[str, float]]:
    """What :func:`start` and :func:`step` answer."""
    folder = Path(tempfile.mkdtemp(dir=fixtures))
    on_cpu = patch_environment(accelerate_use_cpu=shape.device == "cpu")  # a card is not taken because it is there
    with deterministic(threads=shape.threads), quietly(), on_cpu:
        determinism.fill_uninitialized_memory = False  # finds bugs, costs time on every side
        case = build_case(shape, fixtures, folder, steps + 1)
        running = SIDES[side](case, shape, folder / "checkpoints")
        gemm = gemm_flops_per_second(shape)
        with flop_counter() as counter:
            loss = next(running)
        yield {"loss": loss, "flops": counter.get_total_flops(), "gemm": gemm}
        for _ in range(steps):
            seconds = _clocked(lambda: next(running), shape)
            yield {
                "seconds": seconds,
                "peak_bytes": peak_bytes() if shape.device == "cpu" else torch.cuda.max_memory_allocated(),
            }


def gemm_flops_per_second(shape: Shape, repetitions: int = 6) -> float:
    """The best of a few square products, in the dtype of the shape's matrix products."""
    dtype = torch.bfloat16 if shape.dtype == "bf16" else torch.float32
    first, second = (torch.ones(PEAK_SIZE, PEAK_SIZE, dtype=dtype, device=shape.device) for _ in range(2))
    best = min(_clocked(lambda: torch.mm(first, second), shape) for _ in range(repetitions))
    return float(2 * PEAK_SIZE**3 / best)


def _clocked(work: Callable[[], object], shape: Shape) -> float:
    """Seconds: CPU time of one thread, the wall's where several work or a GPU does."""
    wait = torch.cuda.synchronize if shape.device == "cuda" else lambda: None
    clock = time.thread_time if shape.threads == 1 and shape.device == "cpu" else time.perf_counter
    wait()
    start = clock()
    work()
    wait()
    return clock() - start
