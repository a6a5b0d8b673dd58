"""Throughput of the ports' training step, on a case large enough that arithmetic takes the time."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import parity.speed as core
from parity.compare import RowKey
from parity.environment import deterministic, quietly
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.case import RecordedCase
from parity.prototypes.original.child import record_original
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import ReferenceRun, prepare
from parity.prototypes.synthetic import write_case
from parity.tolerances import HELD
from parity.verdict import Against, Report

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
LIVE_STEPS, LIVE_ROUNDS, WARMUP = 4, 3, 2
ALLOWED = HELD["throughput"]

Timed = Mapping[str, core.Times]
"""By side: ``reference`` or ``original``, and ``port``."""


@contextlib.contextmanager
def speed_case(algorithm: str = "eagle3") -> Iterator[RecordedCase]:
    """A case large enough that arithmetic, not bookkeeping, takes the time; no forward pass is needed to build it."""
    with tempfile.TemporaryDirectory() as folder:
        fixture = build_random_fixture(Path(folder) / "fixture", spec=SPEC, lengths=LENGTHS, draft_vocab_size=512)
        yield write_case(Path(folder), fixture, f"{algorithm}_throughput", algorithm=algorithm, epoch=0)


def throughput(algorithm: str, options: Any) -> Report:
    """Beside the reference, and beside the live original where ``options`` name a checkout."""
    with speed_case(algorithm) as case:
        report = judged(case, measure(case))
        if options.original is not None:
            held(report, case, measure_live(case, options.original), "original", Against.PROTOTYPE)
    return report


def judged(case: RecordedCase, times: Timed) -> Report:
    """The port beside the reference."""
    report = Report()
    held(report, case, times, "reference", Against.REFERENCE)
    return report


def held(report: Report, case: RecordedCase, times: Timed, prototype: str, against: Against) -> None:
    """The port beside whoever stands for the prototype: rows, and what is drawn."""
    sides = times[prototype], times["port"]
    report.rows += core.prototype_rows(RowKey("throughput", case.name, "port", against), *sides, prototype, ALLOWED)
    tokens = sum(LENGTHS[: case.bs * STEPS]) // STEPS
    report.speeds.append(core.speed_of(case.name, *sides, (prototype, "port"), tokens))


def measure(case: RecordedCase, steps: int = STEPS, rounds: int = ROUNDS) -> Timed:
    """The reference, which does what the prototype does, and the port; one thread, alternating.

    The reference keeps no trace, which the prototype does not compute; the port loads its data in its training loop.
    """
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        sides = {"reference": lambda: ReferenceRun(prepare(case), observed=False).optimizer_steps()}
        sides |= {"port": port_steps(case, Path(folder))}
        return core.alternate(sides, steps, rounds)


def port_steps(case: RecordedCase, folder: Path) -> core.Steps:
    """Every run of the port in a place of its own under ``folder``."""
    return lambda: start_port(case, Path(tempfile.mkdtemp(dir=folder))).optimizer_steps()


def measure_live(case: RecordedCase, prototype: Path) -> Timed:
    """The live original against the port: whole runs in turn, their first steps dropped as warm-up."""
    runs: dict[str, list[core.Times]] = {"original": [], "port": []}
    for _ in range(LIVE_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            recording = record_original(case, prototype, Path(folder), max_optimizer_steps=LIVE_STEPS, record=False)
            meta = json.loads((recording / "meta.json").read_text())
            seconds = {"wall": [meta["step_seconds"]], "CPU": [meta["step_cpu_seconds"]]}
            runs["original"].append(core.Times(seconds, meta["first_step_flops"] * LIVE_STEPS))
            with deterministic(), quietly():
                runs["port"].append(core.alternate({"port": port_steps(case, Path(folder))}, LIVE_STEPS, 1)["port"])
    return {name: _warm(taken) for name, taken in runs.items()}


def _warm(runs: list[core.Times]) -> core.Times:
    """Runs as the rounds of one, without their warm-up; the FLOPs are those of the steps that are left."""
    seconds = {clock: [run.seconds[clock][0][WARMUP:] for run in runs] for clock in core.CLOCKS}
    return core.Times(seconds, runs[-1].flops // LIVE_STEPS * (LIVE_STEPS - WARMUP))
