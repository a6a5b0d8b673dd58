"""The live original as the prototype of a comparison, and its own script on the port's adapter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from parity.compare import Subject
from parity.prototypes.algorithms import ALGORITHMS
from parity.prototypes.case import Case, read_case
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.original import OriginalRequest, record_original, verify
from parity.prototypes.port import run_port
from parity.prototypes.recorded import PROTOTYPE_SEED, load_recorded
from parity.prototypes.reference.loop import float64_oracle
from parity.trace import Trace
from parity.verdict import Row

ADAPTER_CHECKS = ("batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve")


def request_for(case: Case, prototype: Path, output: Path, **changes: object) -> OriginalRequest:
    """The original's run that the case describes; where it draws, it is seeded at the start of its loop."""
    request = OriginalRequest(
        prototype=prototype,
        fixture=case.fixture,
        output=output,
        case=case.name,
        algorithm=case.algorithm,
        dtype=case.dtype,
        lr=case.lr,
        bs=case.bs,
        gradient_accumulation_steps=case.accumulation,
        epoch=case.epoch,
        topk=case.topk,
        forward_num_total=case.ttt_steps,
        noise=case.noise,
        shuffle=case.shuffle,
        initial_weights=case.initial,
        seed=PROTOTYPE_SEED if case.noise or case.shuffle else None,
    )
    return OriginalRequest(**{**dict(request), **changes})


def original_baseline(prototype: Path) -> Callable[[Case], contextlib.AbstractContextManager[tuple[Case, Trace]]]:
    """Runs the unmodified script afresh for every case."""

    @contextlib.contextmanager
    def baseline(case: Case) -> Iterator[tuple[Case, Trace]]:
        with tempfile.TemporaryDirectory() as folder:
            fresh = read_case(record_original(request_for(case, prototype, Path(folder))))
            yield fresh, load_recorded(fresh, run="original")

    return baseline


@contextlib.contextmanager
def live_port_side(case: Case, expected: Trace) -> Iterator[Evidence]:
    """The port drawing order and noise by itself, seeded like the original at the start of its loop."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_port(case, Path(folder), seed=case.seed or PROTOTYPE_SEED, live=True)
        yield Evidence(case, expected, run.trace, float64_oracle(case), run.checkpoints, run.draft)


def adapter_side(prototype: Path) -> Callable[[Case, Trace], contextlib.AbstractContextManager[Evidence]]:
    """The unmodified script with its model import redirected to the port's adapter."""

    @contextlib.contextmanager
    def side(case: Case, expected: Trace) -> Iterator[Evidence]:
        with tempfile.TemporaryDirectory() as folder:
            request = request_for(case, prototype, Path(folder), redirect=ALGORITHMS[case.algorithm].adapter)
            found = load_recorded(read_case(record_original(request)), run="adapter")
            yield Evidence(case, expected, found, float64_oracle(case))

    return side


def prototype_rows(prototype: Path, algorithm: str) -> list[Row]:
    """Are the prototype's files those of the commit? One failed row per file that is not."""
    subject = Subject("environment", algorithm, "original")
    wrong = verify(prototype, algorithm)
    rows = [subject.row("files", m.file, 1.0, 0.0, False, f"found {m.found}, expected {m.expected}") for m in wrong]
    return rows or [subject.row("files", "all", 0.0, 0.0, True)]
