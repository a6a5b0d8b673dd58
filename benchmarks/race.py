"""Several sides on one shape: a step of each in turn, order turned round every round; minima count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape
from benchmarks.useful import useful_flops

PROJECT = Path(__file__).parents[1]


@dataclass
class Measured:
    """One side on one shape: seconds per optimizer step, peak memory, FLOPs that were counted, the first loss.

    ``gemm`` is what the same process reached in a square matrix product, FLOPs per second.
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
        best = min(self.seconds)
        useful = useful_flops(self.shape)
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


class Racer:
    """A worker process, one step per call; its standard error goes to ``log``."""

    def __init__(self, side: str, shape: Shape, rounds: int, fixtures: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", side, shape.as_json(), str(rounds), str(fixtures)]
        self.log = fixtures / f"{shape}-{side.replace(' ', '_')}.log"
        threads = {name: str(shape.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        hidden = {} if shape.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**os.environ, **threads, **hidden},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        first = self._answer()
        self.measured = Measured(shape, side, first["loss"], int(first["flops"]), first["gemm"])

    def step(self) -> None:
        """Make one step and note its time."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.measured.seconds.append(answer["seconds"])
        self.measured.peak_bytes = int(answer["peak_bytes"])

    def close(self) -> None:
        """End the process and what it holds."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"{self.log} ends with:\n{self.log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(shape: Shape, sides: Sequence[str], rounds: int, fixtures: Path) -> dict[str, Measured]:
    """Start every side, one after the other, then let them step in turn."""
    racers: list[Racer] = []
    try:
        for side in sides:
            racers.append(Racer(side, shape, rounds, fixtures))
        for number in range(rounds):
            for racer in racers if number % 2 == 0 else racers[::-1]:
                racer.step()
        return {racer.measured.side: racer.measured for racer in racers}
    finally:
        for racer in racers:
            racer.close()
