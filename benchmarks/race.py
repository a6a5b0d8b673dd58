"""Several sides on one shape: a step of each in turn, order turned round every round; minima count."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import worker
from benchmarks.shapes import Shape, build_case
from benchmarks.useful import useful_flops
from parity.prototypes.original.child import record_original

WARMUP = 1


@dataclass
class Measured:
    """One side on one shape: the first loss, FLOPs that were counted, seconds per optimizer step, peak memory.

    ``gemm`` is what the same process reached in a square matrix product, FLOPs per second; 0 where nobody asked.
    """

    shape: Shape
    side: str
    loss: float
    flops: int
    gemm: float
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """What a benchmark's JSON says beside the times."""
        best, useful = min(self.seconds), useful_flops(self.shape)
        return {
            **vars(self.shape),
            "side": self.side,
            "tokens_per_second": self.shape.length / best,
            "peak_bytes": self.peak_bytes,
            "flops": self.flops,
            "useful_flops": useful,
            "gemm_flops_per_second": self.gemm,
            "fraction_of_gemm_peak": useful / best / self.gemm if self.gemm else None,
            "loss": self.loss,
        }


def race(shape: Shape, sides: Sequence[str], rounds: int, fixtures: Path) -> dict[str, Measured]:
    """Start every side in a process of its own, one after the other, then let them step in turn."""
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(shape.threads))
    environment |= {} if shape.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    found: dict[str, Measured] = {}
    with ExitStack() as stack, mock.patch.dict(os.environ, environment):
        processes = {side: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for side in sides}
        for side, process in processes.items():
            found[side] = Measured(shape, side, **process.submit(worker.start, side, shape, rounds, fixtures).result())
        for number in range(rounds):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                answer = processes[side].submit(worker.step).result()
                found[side].seconds.append(answer["seconds"])
                found[side].peak_bytes = int(answer["peak_bytes"])
    return found


def run_original(shape: Shape, prototype: Path, rounds: int, fixtures: Path) -> Measured:
    """``rounds`` steps of the live original after a warm-up, in one run, since its script does not stop in between."""
    with tempfile.TemporaryDirectory() as folder:
        case = build_case(shape, fixtures, Path(folder), rounds + WARMUP)
        steps = {"max_optimizer_steps": rounds + WARMUP, "threads": shape.threads}
        recording = record_original(case, prototype, Path(folder) / "recording", timeout=None, record=False, **steps)
        meta = json.loads((recording / "meta.json").read_text())
    seconds = meta["step_cpu_seconds" if shape.threads == 1 else "step_seconds"][WARMUP:]
    return Measured(shape, "original", float("nan"), meta["first_step_flops"], 0.0, seconds, meta["peak_bytes"])
