"""The harness itself: every check names the fault it is there for, and no other check does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.judge import explain

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.checks import CHECKS, run_checks
from parity.trace import Trace
from parity.verdict import Row, Status
from tests.parity.faults import FAULTS, Fault

Evident = Callable[[str], Evidence]

DEAR = frozenset({"chain", "resume", "converted"})
"""Checks that train or convert: they run on a fault of their own, and on every fault in the matrix."""

LONG = frozenset({"converted", "precision"})
"""Checks of a run's end: of the final weights, and of bfloat16 weights, which few steps do not move."""

BOTH_SIDES = frozenset({"initial", "chain", "resume"})
"""Checks that make what they compare."""

NAMES = {check.name for check in CHECKS}
IDS = [fault.name.replace(" ", "-") for fault in FAULTS]


def failed(rows: list[Row]) -> set[str]:
    return {row.check for row in rows if row.status is Status.FAILED}


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_is_named(
    fault: Fault, few_steps: Evident, whole_run: Evident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first steps, which is where faults show; by the checks that must name it and no cheap one."""
    fault.plant(monkeypatch)
    evidence = (whole_run if LONG & fault.named_by else few_steps)(fault.case)
    rows = run_checks(evidence, only=(NAMES - DEAR) | fault.named_by)
    assert failed(rows) == fault.named_by, [row for row in rows if row.status is Status.FAILED]


@pytest.mark.matrix
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_no_check_names_another_ones_fault(fault: Fault, whole_run: Evident, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.plant(monkeypatch)
    assert failed(run_checks(whole_run(fault.case))) == fault.named_by


def test_every_check_has_a_fault() -> None:
    assert {name for fault in FAULTS for name in fault.named_by} == NAMES


@pytest.mark.parametrize("name", sorted({fault.case for fault in FAULTS}))
def test_without_a_fault_nothing_fails(name: str, sound: Evident) -> None:
    evidence = sound(name)
    rows = run_checks(evidence)
    assert {row.check for row in rows} == {check.name for check in CHECKS if not check.inapplicable(evidence)}
    assert all(row.passed for row in rows)


@pytest.mark.parametrize("name", sorted(NAMES - BOTH_SIDES))
def test_zero_comparisons_fail(name: str, sound: Evident, tmp_path) -> None:
    """Both sides empty: nothing was compared, which no check may let pass."""
    evidence = sound("eagle3_bf16ds_k3" if name == "precision" else "eagle3_fp32_k3")
    case, check = evidence.case, next(check for check in CHECKS if check.name == name)
    sides = [Trace(run, case.name, case.dtype) for run in ("recorded", "port", "reference")]
    empty = Evidence(case, *sides[:2], lambda: sides[2], tmp_path, evidence.draft)
    if name in ("round_trip", "converted"):
        with pytest.raises(InputError, match="checkpoints: found none"):
            check.run(empty)
    else:
        assert not all(row.passed for row in check.run(empty)) or not check.run(empty)


def test_a_fault_is_located(case: Case, few_steps: Evident, monkeypatch: pytest.MonkeyPatch) -> None:
    next(fault for fault in FAULTS if fault.name == "own-position keys off").plant(monkeypatch)
    evidence = few_steps(case.name)
    rows = explain(run_checks(evidence, only=["batches", "forward"]), evidence)
    hint = next(row.hint for row in rows if row.status is Status.FAILED)
    assert "own-position-kv" in hint
    assert "layers.0.self_attn agree at TTT step 2" in hint
