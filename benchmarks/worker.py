"""One side in a process of its own, so that peak memory is its own: ``python -m benchmarks.worker SIDE SHAPE STEPS``.

Says one JSON line after the first step, which warms up and counts, then one for every line it reads. Where no GPU is
timed, seconds are the process' CPU time over its threads: another process on the core does not count.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils import deterministic as determinism

import ports  # noqa: F401  (its guard runs before anything imports transformers)
from benchmarks.shapes import Shape, build_case
from benchmarks.sides import SIDES, Steps
from parity.environment import deterministic, quietly
from parity.speed import flop_counter, peak_bytes

PEAK_SIZE = 2048


def measure(side: str, shape: Shape, steps: int, fixtures: Path) -> Iterator[dict[str, float]]:
    """The first step's loss, FLOPs and memory; then seconds and memory of every further step."""
    with tempfile.TemporaryDirectory() as folder, deterministic(threads=shape.threads), quietly():
        determinism.fill_uninitialized_memory = False  # finds bugs, costs time on every side
        case = build_case(shape, fixtures, Path(folder), steps + 1)
        running = SIDES[side](case, shape, Path(folder) / "checkpoints")
        gemm = gemm_flops_per_second(shape)
        with flop_counter() as counter:
            loss = next(running)
        yield {"loss": loss, "flops": counter.get_total_flops(), "peak_bytes": _peak(shape), "gemm": gemm}
        for _ in range(steps):
            seconds = _timed(running, shape)
            yield {"seconds": seconds, "peak_bytes": _peak(shape)}


def gemm_flops_per_second(shape: Shape, repetitions: int = 6) -> float:
    """The best of a few square products, in the dtype of the shape's matrix products."""
    dtype = torch.bfloat16 if shape.dtype == "bf16" else torch.float32
    first, second = (torch.ones(PEAK_SIZE, PEAK_SIZE, dtype=dtype, device=shape.device) for _ in range(2))
    best = min(_clocked(lambda: torch.mm(first, second), shape) for _ in range(repetitions))
    return float(2 * PEAK_SIZE**3 / best)


def _timed(running: Steps, shape: Shape) -> float:
    return _clocked(lambda: next(running), shape)


def _clocked(work: Callable[[], object], shape: Shape) -> float:
    """Seconds: CPU time of one thread, the wall's where several work or a GPU does."""
    clock = time.thread_time if shape.threads == 1 and shape.device == "cpu" else time.perf_counter
    _wait(shape)
    start = clock()
    work()
    _wait(shape)
    return clock() - start


def _wait(shape: Shape) -> None:
    if shape.device == "cuda":
        torch.cuda.synchronize()


def _peak(shape: Shape) -> int:
    """The most bytes held so far: of the process, or of the GPU."""
    if shape.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_bytes()


def main() -> None:
    """Answer on the real standard output; nothing else of this process gets there."""
    side, shape, steps, fixtures = sys.argv[1:]
    answer, sys.stdout = sys.stdout, sys.stderr
    for line in measure(side, Shape(**json.loads(shape)), int(steps), Path(fixtures)):
        print(json.dumps(line), file=answer, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
