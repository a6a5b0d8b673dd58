"""The kit itself: every check names the fault it is there for, and no other check does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from parity.prototypes.judge import explain

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.checks import CHECKS, run_checks
from parity.prototypes.checks.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Status
from tests.parity.faults import FAULTS, Fault

ON_DISK = ("round_trip", "converted", "chain", "resume")
DRAWN = ("initial", "sources", "sizes", "corners", "upkeep", "refusals")
"""Checks that make what they compare."""


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_fault_is_named(
    fault: Fault, cases: dict[str, Case], port_evidence: Callable[[Case], Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.plant(monkeypatch)
    rows = run_checks(port_evidence(cases[fault.case]))
    failed = {row.check for row in rows if row.status is Status.FAILED}
    assert failed == fault.named_by, "\n".join(
        f"{row.check} {row.tensor}: {row.detail}" for row in rows if row.status is Status.FAILED
    )


def test_every_check_has_a_fault() -> None:
    named = {name for fault in FAULTS for name in fault.named_by}
    assert named == {check.name for check in CHECKS}


def test_without_a_fault_nothing_fails(case: Case, port_evidence: Callable[[Case], Evidence]) -> None:
    rows = run_checks(port_evidence(case))
    assert {row.check for row in rows} >= {check.name for check in CHECKS} - {"precision"}
    assert all(row.passed for row in rows)


@pytest.mark.parametrize("check", [c.name for c in CHECKS])
def test_zero_comparisons_fail(
    check: str, case: Case, cases: dict[str, Case], port_evidence: Callable[[Case], Evidence]
) -> None:
    """Both sides empty: nothing was compared, which is a failure of every check that applies."""
    chosen = cases["eagle3_bf16ds_k3"] if check == "precision" else case
    evidence = port_evidence(chosen)
    empty = Evidence(
        chosen,
        Trace("recorded", chosen.name, chosen.dtype),
        Trace("port", chosen.name, chosen.dtype),
        lambda: Trace("reference", chosen.name, chosen.dtype),
        evidence.checkpoints,
        evidence.draft,
    )
    if check in ON_DISK or check in DRAWN:
        _nothing_on_disk(check, empty)
        return
    rows = next(entry for entry in CHECKS if entry.name == check).run(empty)
    assert not rows or not all(row.passed for row in rows)


def _nothing_on_disk(check: str, evidence: Evidence) -> None:
    """These compare files and models: without any, they refuse to judge."""
    assert evidence.checkpoints is not None
    evidence.checkpoints = evidence.checkpoints / "nothing here"
    if check in ("chain", "resume", *DRAWN):
        assert run_checks(evidence, only=[check])
        return
    with pytest.raises(InputError, match="checkpoints: found none"):
        next(c for c in CHECKS if c.name == check).run(evidence)


def test_a_fault_is_located(
    case: Case, port_evidence: Callable[[Case], Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    next(fault for fault in FAULTS if fault.name == "own-position keys off").plant(monkeypatch)
    evidence = port_evidence(case)
    rows = explain(run_checks(evidence), evidence)
    hint = next(row.hint for row in rows if row.status is Status.FAILED)
    assert "own-position-kv" in hint
    assert "layers.0.self_attn agree at TTT step 2" in hint
