"""Throughput of the ports' training step, on a case large enough that arithmetic takes the time."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from parity.compare import Subject
from parity.environment import deterministic, quietly
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.case import Case
from parity.prototypes.original import record_original, request_for
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import Run
from parity.prototypes.reference.setup import prepare
from parity.prototypes.synthetic import write_case
from parity.speed import (
    YARDSTICK,
    Baseline,
    Steps,
    Times,
    alternate,
    baseline_row,
    prototype_rows,
    read_baseline,
    save_baseline,
    speed_of,
    yardstick,
)
from parity.tolerances import tables
from parity.verdict import Against, Report, Row, Speed

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


@dataclass(frozen=True)
class Measured:
    """Times of the port, the yardstick and whoever stands for the prototype: ``reference``, or ``original`` live."""

    prototype: str
    times: Mapping[str, Times]

    def rows(self, case: Case, baseline: Baseline | None = None) -> list[Row]:
        """Both gates."""
        against = Against.PROTOTYPE if self.prototype == "original" else Against.REFERENCE
        subject = Subject("throughput", case.name, "port", against)
        allowed = tables()["float32"]["throughput"]
        rows = prototype_rows(subject, self.times[self.prototype], self.times["port"], self.prototype, allowed)
        if YARDSTICK in self.times:
            own = replace(subject, against=Against.ITSELF)
            rows.append(baseline_row(own, self.times["port"], self.times[YARDSTICK], baseline, allowed))
        return rows

    @property
    def figure(self) -> float:
        """What a baseline stores."""
        return self.times["port"].best("CPU") / self.times[YARDSTICK].best("CPU")

    def speed(self, case: Case) -> Speed:
        """What the report draws."""
        tokens = sum(LENGTHS[: case.bs * STEPS]) // STEPS if case.name.endswith("_throughput") else 0
        return speed_of(case.name, self.times[self.prototype], self.times["port"], (self.prototype, "port"), tokens)


@contextlib.contextmanager
def speed_case(algorithm: str = "eagle3") -> Iterator[Case]:
    """A case large enough that arithmetic, not bookkeeping, takes the time; no forward pass is needed to build it."""
    with tempfile.TemporaryDirectory() as folder:
        fixture = build_random_fixture(Path(folder) / "fixture", spec=SPEC, lengths=LENGTHS, draft_vocab_size=512)
        yield write_case(Path(folder), fixture, f"{algorithm}_throughput", algorithm=algorithm, epoch=0)


def measure(case: Case, steps: int = STEPS, rounds: int = ROUNDS) -> Measured:
    """The reference, which does what the prototype does, the port and the yardstick; one thread, alternating."""
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        sides = {"reference": reference_steps(case), "port": port_steps(case, Path(folder)), YARDSTICK: yardstick}
        return Measured("reference", alternate(sides, steps, rounds))


def throughput(algorithm: str, checkout: Path | None, baseline: Path | None, save: Path | None) -> Report:
    """Both gates beside the reference, and gate one beside the live original where there is a checkout.

    ``baseline`` is a file to compare with, ``save`` one that the port's figure goes to, beside those it has.
    """
    report, stored = Report(), read_baseline(baseline) if baseline else None
    with speed_case(algorithm) as case:
        measured = measure(case)
        every = [measured] if checkout is None else [measured, measure_live(case, checkout)]
        for one in every:
            report.rows += one.rows(case, stored)
            report.speeds.append(one.speed(case))
        if save is not None:
            before = read_baseline(save).figures if save.exists() else {}
            save_baseline(save, {**before, case.name: measured.figure})
    return report


def reference_steps(case: Case) -> Steps:
    """Without what a trace keeps, which the prototype does not compute."""
    return lambda: Run(prepare(case), observed=False).optimizer_steps()


def port_steps(case: Case, folder: Path) -> Steps:
    """The training loop with its data loading; every run of it in a place of its own under ``folder``."""
    return lambda: start_port(case, Path(tempfile.mkdtemp(dir=folder))).optimizer_steps()


def measure_live(case: Case, prototype: Path, rounds: int = LIVE_ROUNDS, steps: int = LIVE_STEPS) -> Measured:
    """The live original against the port: whole runs in turn, their first steps dropped as warm-up."""
    taken: dict[str, list[Times]] = {"original": [], "port": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            taken["original"].append(_original_steps(case, prototype, Path(folder), steps))
        with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
            own = alternate({"port": port_steps(case, Path(folder))}, steps, 1)["port"]
            late = {clock: [rows[0][WARMUP:]] for clock, rows in own.seconds.items()}
            taken["port"].append(Times(late, own.flops // steps * (steps - WARMUP)))
    return Measured("original", {name: _together(runs) for name, runs in taken.items()})


def _together(runs: list[Times]) -> Times:
    seconds = {clock: [run.seconds[clock][0] for run in runs] for clock in runs[0].seconds}
    return Times(seconds, runs[-1].flops)


def _original_steps(case: Case, prototype: Path, output: Path, steps: int) -> Times:
    """Of the original's optimizer steps after the warm-up."""
    request = request_for(case, prototype, output, max_optimizer_steps=steps, record=False, count_flops=True)
    meta = json.loads((record_original(request) / "meta.json").read_text())
    seconds = {"wall": meta["step_seconds"], "CPU": meta["step_cpu_seconds"]}
    late = {clock: [list(values[WARMUP:])] for clock, values in seconds.items()}
    return Times(late, int(meta["first_step_flops"]) * len(late["CPU"][0]))
