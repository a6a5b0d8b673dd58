"""Throughput of the ports' training step, on a case large enough that arithmetic takes the time."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import parity.speed as core
from parity.compare import Subject
from parity.environment import deterministic, quietly
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.case import Case
from parity.prototypes.original import record_original, request_for
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import Run, prepare
from parity.prototypes.synthetic import write_case
from parity.tolerances import tables
from parity.verdict import Against, Report, Row

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
ALLOWED = tables()["float32"]["throughput"]

Timed = Mapping[str, core.Times]
"""By side: ``reference`` or ``original``, ``port``, and the yardstick where there is one."""


@contextlib.contextmanager
def speed_case(algorithm: str = "eagle3") -> Iterator[Case]:
    """A case large enough that arithmetic, not bookkeeping, takes the time; no forward pass is needed to build it."""
    with tempfile.TemporaryDirectory() as folder:
        fixture = build_random_fixture(Path(folder) / "fixture", spec=SPEC, lengths=LENGTHS, draft_vocab_size=512)
        yield write_case(Path(folder), fixture, f"{algorithm}_throughput", algorithm=algorithm, epoch=0)


def throughput(algorithm: str, options: Any) -> Report:
    """Both gates beside the reference, and gate one beside the live original where there is a checkout.

    ``options`` are a run's: its baseline is compared with, and the port's figure saved beside those that are there.
    """
    with speed_case(algorithm) as case:
        report, times = Report(), measure(case)
        judge(report, case, times, "reference")
        stored = core.read_baseline(options.baseline) if options.baseline else None
        report.rows.append(judge_baseline(case, times, stored))
        if options.original is not None:
            judge(report, case, measure_live(case, options.original), "original")
        if options.save_baseline is not None:
            file = options.save_baseline
            before = core.read_baseline(file).figures if file.exists() else {}
            core.save_baseline(file, {**before, case.name: figure(times)})
    return report


def judge(report: Report, case: Case, times: Timed, prototype: str) -> None:
    """Gate one, beside whoever stands for the prototype: ``reference``, or ``original`` live; and what is drawn."""
    against = Against.PROTOTYPE if prototype == "original" else Against.REFERENCE
    subject, sides = Subject("throughput", case.name, "port", against), (times[prototype], times["port"])
    report.rows += core.prototype_rows(subject, *sides, prototype, ALLOWED)
    tokens = sum(LENGTHS[: case.bs * STEPS]) // STEPS if case.name.endswith("_throughput") else 0
    report.speeds.append(core.speed_of(case.name, *sides, (prototype, "port"), tokens))


def judge_baseline(case: Case, times: Timed, stored: core.Baseline | None) -> Row:
    """Gate two, beside what was stored before."""
    subject = Subject("throughput", case.name, "port", Against.ITSELF)
    return core.baseline_row(subject, times["port"], times[core.YARDSTICK], stored, ALLOWED)


def figure(times: Timed) -> float:
    """What a baseline stores."""
    return times["port"].best("CPU") / times[core.YARDSTICK].best("CPU")


def measure(case: Case, steps: int = STEPS, rounds: int = ROUNDS) -> Timed:
    """The reference, which does what the prototype does, the port and the yardstick; one thread, alternating."""
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        sides = {"reference": reference_steps(case), "port": port_steps(case, Path(folder))}
        return core.alternate({**sides, core.YARDSTICK: core.yardstick}, steps, rounds)


def reference_steps(case: Case) -> core.Steps:
    """Without what a trace keeps, which the prototype does not compute."""
    return lambda: Run(prepare(case), observed=False).optimizer_steps()


def port_steps(case: Case, folder: Path) -> core.Steps:
    """The training loop with its data loading; every run of it in a place of its own under ``folder``."""
    return lambda: start_port(case, Path(tempfile.mkdtemp(dir=folder))).optimizer_steps()


def measure_live(case: Case, prototype: Path, rounds: int = LIVE_ROUNDS, steps: int = LIVE_STEPS) -> Timed:
    """The live original against the port: whole runs in turn, their first steps dropped as warm-up."""
    taken: dict[str, list[core.Times]] = {"original": [], "port": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            taken["original"].append(_original_steps(case, prototype, Path(folder), steps))
        with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
            own = core.alternate({"port": port_steps(case, Path(folder))}, steps, 1)["port"]
            taken["port"].append(_late({clock: rows[0] for clock, rows in own.seconds.items()}, own.flops // steps))
    return {name: _together(runs) for name, runs in taken.items()}


def _original_steps(case: Case, prototype: Path, output: Path, steps: int) -> core.Times:
    request = request_for(case, prototype, output, max_optimizer_steps=steps, record=False, count_flops=True)
    meta = json.loads((record_original(request) / "meta.json").read_text())
    return _late({"wall": meta["step_seconds"], "CPU": meta["step_cpu_seconds"]}, int(meta["first_step_flops"]))


def _late(seconds: Mapping[str, Sequence[float]], flops: int) -> core.Times:
    """One run without its warm-up; ``flops`` are those of a step."""
    late = {clock: [list(values[WARMUP:])] for clock, values in seconds.items()}
    return core.Times(late, flops * len(late["CPU"][0]))


def _together(runs: list[core.Times]) -> core.Times:
    seconds = {clock: [run.seconds[clock][0] for run in runs] for clock in runs[0].seconds}
    return core.Times(seconds, runs[-1].flops)
