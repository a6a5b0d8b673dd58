"""Throughput: the port's training step against the prototype's, on the same batches."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parity.case import Case
from parity.compare import Subject
from parity.environment import deterministic, quietly
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.live import request_for
from parity.result import Row, Speed
from parity.runs.original import record_original
from parity.runs.port import start_port
from parity.runs.reference.loop import Run
from parity.runs.reference.setup import prepare
from parity.runs.timing import Steps, Timings, alternate
from parity.synthetic import write_case
from parity.tolerances import SHORTFALL

LENGTHS = (160, 192, 176, 144, 192, 128, 160, 176)
SPEC = VerifierSpec(
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=384,
    num_hidden_layers=8,
    vocab_size=2048,
    seed=7,
)
STEPS, ROUNDS = 3, 7
WARMUP = 2


@contextlib.contextmanager
def speed_case(algorithm: str = "eagle3") -> Iterator[Case]:
    """A case large enough that arithmetic, not bookkeeping, takes the time; no forward pass is needed to build it."""
    with tempfile.TemporaryDirectory() as folder:
        fixture = build_random_fixture(Path(folder) / "fixture", spec=SPEC, lengths=LENGTHS, draft_vocab_size=512)
        yield write_case(Path(folder), fixture, f"{algorithm}_throughput", algorithm=algorithm, epoch=0)


def measure(case: Case, steps: int = STEPS, rounds: int = ROUNDS) -> Timings:
    """The reference, which does what the prototype does, against the port; one thread, alternating."""
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        return alternate(reference_steps(case), port_steps(case, Path(folder)), steps, rounds)


def reference_steps(case: Case) -> Steps:
    return lambda: Run(prepare(case)).optimizer_steps()


def port_steps(case: Case, cpdir: Path) -> Steps:
    return lambda: start_port(case, cpdir).optimizer_steps()


def judge_speed(case: Case, timings: Timings, prototype: str) -> tuple[Row, Speed]:
    """Time per step of the port over the prototype's; at most 1 / 0.9 is allowed."""
    allowed = 1 / SHORTFALL["throughput"].bound
    slowdown = 1 / timings.ratio
    low, high = timings.interval()
    detail = f"throughput is {timings.ratio:.2f}x the {prototype}'s, 95 % interval {low:.2f} to {high:.2f}"
    subject = Subject("throughput", case.name, "port")
    row = subject.row("throughput", "time per step", slowdown, allowed, slowdown <= allowed, detail)
    return row, summary(case, timings, prototype)


def summary(case: Case, timings: Timings, prototype: str) -> Speed:
    """What the report draws: one entry a round, seconds per optimizer step."""
    steps = len(timings.first[0])
    first, second = ([sum(times) / steps for times in side] for side in (timings.first, timings.second))
    tokens = sum(LENGTHS[: case.bs * steps]) // steps if case.name.endswith("_throughput") else 0
    return Speed(
        case=case.name,
        prototype=prototype,
        port="port",
        prototype_seconds=tuple(first),
        port_seconds=tuple(second),
        prototype_flops=timings.first_flops // steps,
        port_flops=timings.second_flops // steps,
        ratio=timings.ratio,
        interval=timings.interval(),
        tokens=tokens,
    )


def live_timings(case: Case, prototype: Path, rounds: int = 3, steps: int = 4) -> Timings:
    """The live original against the port: whole runs in turn, their first steps dropped as warm-up."""
    first, second, flops = [], [], (0, 0)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            taken, first_flops = _original_steps(case, prototype, Path(folder), steps)
        first.append(taken)
        with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
            own = alternate(port_steps(case, Path(folder)), port_steps(case, Path(folder)), steps, 1)
        second.append(own.first[0][WARMUP:])
        flops = (first_flops * len(taken), own.first_flops // steps * len(taken))
    return Timings(first, second, *flops)


def _original_steps(case: Case, prototype: Path, output: Path, steps: int) -> tuple[list[float], int]:
    """CPU seconds of the original's optimizer steps, and the FLOPs of one."""
    request = request_for(case, prototype, output, max_optimizer_steps=steps, record=False, count_flops=True)
    meta = json.loads((record_original(request) / "meta.json").read_text())
    return list(meta["step_cpu_seconds"][WARMUP:]), int(meta["first_step_flops"])
