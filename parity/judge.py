"""From cases to a report: run every side of every case, compare, collect what the report draws."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from parity.case import Case
from parity.checks import checks_for, run_checks
from parity.checks.evidence import Evidence
from parity.checks.recorded.backward import gradient_flow
from parity.deviations import LEDGER
from parity.environment import describe
from parity.errors import InputError
from parity.localise import localise, sentence
from parity.result import Curve, Report, Row, Status
from parity.runs.original import OriginalRunError
from parity.runs.port import run_port
from parity.runs.recorded import PROTOTYPE_SEED, load_recorded
from parity.runs.reference.loop import first_step_oracle, trace_reference
from parity.signatures import hint_for
from parity.trace import Trace
from ports.errors import reason

Baseline = Callable[[Case], contextlib.AbstractContextManager[tuple[Case, Trace]]]
"""Gives the prototype's trace of a case, and the case as it was run."""

LOCALISED = ("forward", "loss", "paths", "gradients")


@contextlib.contextmanager
def recorded_baseline(case: Case) -> Iterator[tuple[Case, Trace]]:
    """What the recording holds."""
    yield case, load_recorded(case)


@dataclass(frozen=True)
class Side:
    """A run held against the prototype."""

    name: str
    evidence: Callable[[Case, Trace], contextlib.AbstractContextManager[Evidence]]
    leaves_out: Callable[[Case], str | None] = lambda case: None
    checks: tuple[str, ...] | None = None


@contextlib.contextmanager
def reference_side(case: Case, expected: Trace) -> Iterator[Evidence]:
    """The reference in the case's precision."""
    dtype = torch.float32 if case.dtype == "fp32" else torch.bfloat16
    yield Evidence(case, expected, trace_reference(case, dtype), first_step_oracle(case))


@contextlib.contextmanager
def port_side(case: Case, expected: Trace) -> Iterator[Evidence]:
    """The port, with its checkpoints kept for as long as the checks need them."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_port(case, Path(folder), seed=case.seed or PROTOTYPE_SEED)
        yield Evidence(case, expected, run.trace, first_step_oracle(case), run.checkpoints, run.draft)


def _accumulates(case: Case) -> str | None:
    if case.accumulation == 1:
        return None
    return "accumulation-wipe: the prototype loses accumulated gradients, the port does not; the reference stands in"


def _is_bf16(case: Case) -> str | None:
    return None if case.dtype == "fp32" else "bfloat16: the float64 reference is the oracle"


REFERENCE = Side("reference", reference_side, _is_bf16)
PORT = Side("port", port_side, _accumulates)


def judge(
    cases: Sequence[Case],
    baseline: Baseline = recorded_baseline,
    sides: Sequence[Side] = (REFERENCE, PORT),
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run and compare every case; the report's rows come in the order of cases, sides and checks."""
    report, done = Report(environment=describe(), deviations=list(LEDGER)), set[tuple[str, str]]()
    for named in cases:
        progress(named.name)
        with baseline(named) as (case, expected):
            _add_curves(report, case, expected)
            for side in sides:
                _judge_side(report, side, case, expected, done)
    return report


def _judge_side(report: Report, side: Side, case: Case, expected: Trace, done: set[tuple[str, str]]) -> None:
    reason = side.leaves_out(case)
    if reason:
        report.notes.append(f"{case.name}: {side.name} not compared. {reason}")
        return
    with row_if_it_raises(report, "run", case.name, side.name), side.evidence(case, expected) as evidence:
        rows = run_checks(evidence, side.checks or checks_for(case.algorithm, done))
        done |= {(case.algorithm, row.check) for row in rows}
        report.rows += explain(rows, evidence)
        _add_curves(report, evidence.case, evidence.found)
        report.gradient_flow += gradient_flow(evidence)


@contextlib.contextmanager
def row_if_it_raises(report: Report, check: str, case: str, run: str) -> Iterator[None]:
    """What a port raises is a failed row that says where; bad input still ends the whole run."""
    try:
        yield
    except (InputError, OriginalRunError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {reason(error)}, at {last.filename}:{last.lineno} in {last.name}"
        report.rows.append(Row(check, case, run, "exception", "", None, None, Status.FAILED, detail))


def explain(rows: list[Row], evidence: Evidence) -> list[Row]:
    """The first failed row of every check gets a hint: the deviation it looks like, and where a port parts."""
    explained, seen = [], set()
    for row in rows:
        if row.status is Status.FAILED and row.check not in seen:
            seen.add(row.check)
            row = replace(row, hint="; ".join(filter(None, (hint_for(row, evidence), _place(row, evidence)))))
        explained.append(row)
    return explained


def _place(row: Row, evidence: Evidence) -> str:
    if evidence.draft is None or row.check not in LOCALISED:
        return ""
    finding = localise(evidence.case)
    return sentence(finding) if finding else "module by module both sides agree on the first batch"


def _add_curves(report: Report, case: Case, trace: Trace) -> None:
    run = report.baseline if trace.run in ("recorded", "original") else trace.run
    losses = tuple(point.loss for point in trace.curve)
    norms = tuple(float("nan") if point.grad_norm is None else point.grad_norm for point in trace.curve)
    report.curves.append(Curve(case.name, run, "loss", losses))
    report.curves.append(Curve(case.name, run, "grad_norm", norms))
