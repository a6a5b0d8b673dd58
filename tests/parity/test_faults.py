"""The harness itself: every check of the prototypes' pairs names the fault it is there for, and no other check does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from parity.checks import run_checks
from parity.evidence import Evidence
from parity.pair import find_pair
from parity.prototypes.case import Case
from parity.prototypes.pair import WIPE
from parity.run import hinted
from parity.trace import Trace
from parity.verdict import Row, Status
from tests.parity.faults import FAULTS, Fault

Evident = Callable[[str], Evidence]

DEAR = frozenset({"chain", "resume", "converted", "equivalence"})
"""Checks that train or convert: they run on a fault of their own, and on every fault in the matrix."""

LONG = frozenset({"converted", "precision"})
"""Checks of a run's end: of the final weights, and of bfloat16, whose norms few steps do not move."""

PAIRS = {name: find_pair(name) for name in ("eagle3", "hass")}
NAMES = {check.name for pair in PAIRS.values() for check in pair.every_check}

ELSEWHERE = frozenset({"draws", "equivalence", "initialisation", "samplers", "throughput"})
"""Named by faults in other tests: of what is drawn, of final losses over seeds, of speed."""

BOTH_SIDES = frozenset({"chain", "resume", "converted", "round_trip"})
"""Checks that make what they compare."""

IDS = [fault.name.replace(" ", "-") for fault in FAULTS]


def judged(evidence: Evidence, only: frozenset[str] | set[str] | None = None) -> list[Row]:
    return run_checks(evidence, PAIRS[evidence.case.algorithm].every_check, only)


def failed(rows: list[Row]) -> set[str]:
    return {row.check for row in rows if row.status is Status.FAILED}


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_is_named(
    fault: Fault, few_steps: Evident, whole_run: Evident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first steps, which is where faults show; by the checks that must name it and no cheap one."""
    fault.plant(monkeypatch)
    evidence = (whole_run if LONG & fault.named_by or "bf16" in fault.case else few_steps)(fault.case)
    rows = judged(evidence, (NAMES - DEAR) | fault.named_by)
    assert failed(rows) == fault.named_by, [row for row in rows if row.status is Status.FAILED]


@pytest.mark.matrix
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_no_check_names_another_ones_fault(fault: Fault, whole_run: Evident, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.plant(monkeypatch)
    assert failed(judged(whole_run(fault.case))) == fault.named_by


def test_every_check_has_a_fault() -> None:
    assert {name for fault in FAULTS for name in fault.named_by} == NAMES - ELSEWHERE


@pytest.mark.parametrize("name", sorted({fault.case for fault in FAULTS}))
def test_without_a_fault_nothing_fails(name: str, sound: Evident) -> None:
    evidence = sound(name)
    rows = judged(evidence, NAMES - {"equivalence"})
    assert all(row.passed or row.status is Status.NOT_APPLICABLE for row in rows)
    wiped = {row.check for row in rows if WIPE in row.detail}
    assert {row.check for row in rows if row.passed} >= NAMES - DEAR - ELSEWHERE - LONG - wiped or evidence.in_half


@pytest.mark.parametrize("name", sorted(NAMES - BOTH_SIDES - ELSEWHERE))
def test_zero_comparisons_fail(name: str, sound: Evident) -> None:
    """Both sides empty: nothing was compared, which no check may let pass."""
    evidence = sound("eagle3_bf16ds_k3" if name == "precision" else "eagle3_fp32_k3")
    case = evidence.case
    sides = [Trace(run, case.name, case.dtype) for run in ("recorded", "port", "reference")]
    empty = replace(evidence, expected=sides[0], found=sides[1], live=None, oracle=lambda: sides[2])
    rows = judged(empty, {name})
    assert not any(row.passed for row in rows)


def test_a_fault_is_located(case: Case, few_steps: Evident, monkeypatch: pytest.MonkeyPatch) -> None:
    next(fault for fault in FAULTS if fault.name == "own-position keys off").plant(monkeypatch)
    evidence = few_steps(case.name)
    rows = hinted(judged(evidence, {"batches", "forward"}), evidence, None, PAIRS["eagle3"])
    hint = next(row.hint for row in rows if row.status is Status.FAILED)
    assert "forward first goes wrong in layers.0.self_attn, call 2" in hint
