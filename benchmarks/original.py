"""The live original on a shape: whole runs before and after the others, since its script does not stop in between."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.race import Measured
from benchmarks.shapes import Shape, build_case
from parity.prototypes.original import record_original, request_for

WARMUP = 1


def run_original(shape: Shape, prototype: Path, rounds: int, fixtures: Path) -> Measured:
    """``rounds`` optimizer steps after a warm-up; its loss and GEMM peak are not asked for."""
    with tempfile.TemporaryDirectory() as folder:
        case = build_case(shape, fixtures, Path(folder), rounds + WARMUP)
        request = request_for(
            case,
            prototype,
            Path(folder) / "recording",
            max_optimizer_steps=rounds + WARMUP,
            record=False,
            count_flops=True,
            threads=shape.threads,
        )
        meta = json.loads((record_original(request, timeout=None) / "meta.json").read_text())
    seconds = meta["step_cpu_seconds" if shape.threads == 1 else "step_seconds"][WARMUP:]
    nan = float("nan")
    return Measured(shape, "original", nan, int(meta["first_step_flops"]), 0.0, seconds, int(meta["peak_bytes"]))


def together(first: Measured, second: Measured) -> Measured:
    """Two runs of the same as one."""
    first.seconds += second.seconds
    first.peak_bytes = max(first.peak_bytes, second.peak_bytes)
    return first
