"""Read what pytest-benchmark wrote about training steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from parity.errors import InputError


@dataclass(frozen=True)
class Timing:
    """One side on one shape: seconds of its fastest optimizer step, bytes at its peak, FLOPs of a step.

    ``flops`` were counted, ``useful_flops`` are what the step needs; ``fraction_of_gemm_peak`` is useful FLOPs over
    time over what a square product reached, None where that was not measured.
    """

    algorithm: str
    length: int
    ttt_steps: int
    dtype: str
    threads: int
    device: str
    side: str
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    flops: int
    useful_flops: int
    fraction_of_gemm_peak: float | None

    @property
    def shape(self) -> tuple[str, int, int, str, int, str]:
        """Everything but who ran it."""
        return (self.algorithm, self.length, self.ttt_steps, self.dtype, self.threads, self.device)


@dataclass(frozen=True)
class Bench:
    """All timings of a file, and the machine they come from."""

    timings: tuple[Timing, ...]
    machine: dict[str, Any]


def read_all(paths: Sequence[Path]) -> Bench:
    """Several files as one, timings by shape; refuses (InputError) what comes from different machines."""
    read = [read_bench(path) for path in paths]
    for path, bench in zip(paths, read):
        if bench.machine != read[0].machine:
            differ = sorted(name for name in bench.machine if bench.machine[name] != read[0].machine.get(name))
            raise InputError(path, "machine_info", f"another {', '.join(differ)}", f"that of {paths[0]}")
    timings = sorted((timing for bench in read for timing in bench.timings), key=lambda timing: timing.shape)
    return Bench(tuple(timings), read[0].machine)


def read_bench(path: Path) -> Bench:
    """Timings in the file's order.

    Raises:
        InputError: not a pytest-benchmark file, or an entry that is no training step.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries, machine = document["benchmarks"], document["machine_info"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            path, "file", f"{type(error).__name__}: {error}", "the JSON of pytest --benchmark-json"
        ) from error
    if not entries:
        raise InputError(path, "benchmarks", "none", "at least one training step")
    return Bench(tuple(_timing(path, entry) for entry in entries), dict(machine.get("parity", {})))


def _timing(path: Path, entry: dict[str, Any]) -> Timing:
    try:
        said = {**entry["extra_info"], "seconds": entry["stats"]["min"]}
        timing = Timing(**{field.name: said[field.name] for field in fields(Timing)})
    except (KeyError, TypeError) as error:
        name = entry.get("fullname", "benchmarks") if isinstance(entry, dict) else "benchmarks"
        raise InputError(path, name, f"no {error}", "a training step of benchmarks/") from error
    if not isinstance(timing.seconds, float) or timing.seconds <= 0:
        raise InputError(path, entry["fullname"], f"{timing.seconds} seconds", "a positive number")
    return timing
