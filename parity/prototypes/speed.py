"""Throughput of the ports' training step, on a case large enough that arithmetic takes the time.

Beside the reference, which does what the prototypes do; the prototypes themselves are timed by ``pytest benchmarks``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import parity.speed as core
from parity.compare import RowKey
from parity.environment import deterministic, quietly
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.pair import Options
from parity.prototypes.case import RecordedCase
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

Timed = Mapping[str, core.Times]
"""By side: ``reference`` and ``port``."""


@contextlib.contextmanager
def speed_case(algorithm: str = "eagle3") -> Iterator[RecordedCase]:
    """A case large enough that arithmetic, not bookkeeping, takes the time; no forward pass is needed to build it."""
    with tempfile.TemporaryDirectory() as folder:
        fixture = build_random_fixture(Path(folder) / "fixture", spec=SPEC, lengths=LENGTHS, draft_vocab_size=512)
        yield write_case(Path(folder), fixture, f"{algorithm}_throughput", algorithm=algorithm, epoch=0)


def throughput(algorithm: str, options: Options) -> Report:
    """The port of an algorithm, timed and judged; it depends on no option."""
    with speed_case(algorithm) as case:
        return judged(case, measure(case))


def judged(case: RecordedCase, times: Timed) -> Report:
    """The port beside the reference: rows, and what is drawn."""
    report, sides = Report(), (times["reference"], times["port"])
    subject = RowKey("throughput", case.name, "port", Against.REFERENCE)
    report.rows += core.prototype_rows(subject, *sides, "reference", HELD["throughput"])
    tokens = sum(LENGTHS[: case.bs * STEPS]) // STEPS
    report.speeds.append(core.speed_of(case.name, *sides, ("reference", "port"), tokens))
    return report


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
