"""Which failure explains which, and what an empty check is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.checks import CHECKS, checks_for, registry, run_checks
from parity.prototypes.checks.evidence import Check, Evidence, until_refused
from parity.trace import Trace
from parity.verdict import Row, Status


@pytest.fixture
def evidence(case: Case) -> Evidence:
    traces = (Trace(run, case.name, "fp32") for run in ("recorded", "port"))
    return Evidence(case, *traces, lambda: Trace("reference", case.name, "fp32"))


def outcome(name: str, passed: bool | None) -> Check:
    """A check that passes, fails, or compares nothing."""

    def run(evidence: Evidence) -> list[Row]:
        subject = evidence.subject(name)
        return [] if passed is None else [subject.row("q", "t", 0.0, 0.0, passed, "its own words")]

    follows = {"b": ("a",), "c": ("b",), "d": ()}.get(name, ())
    return Check(name, run, follows)


def ran(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch, only: tuple[str, ...] | None = None, **results: bool | None
) -> dict[str, Row]:
    monkeypatch.setattr(registry, "CHECKS", tuple(outcome(name, passed) for name, passed in results.items()))
    return {row.check: row for row in run_checks(evidence, only)}


def test_a_failure_blocks_what_follows_from_it(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ran(evidence, monkeypatch, a=False, b=False, c=False, d=False)
    states = {name: row.status for name, row in rows.items()}
    assert states == {"a": Status.FAILED, "b": Status.BLOCKED, "c": Status.BLOCKED, "d": Status.FAILED}
    assert rows["c"].detail == "follows from a. its own words"


def test_what_passes_downstream_of_a_failure_passes(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ran(evidence, monkeypatch, a=False, b=True, c=False)
    assert rows["b"].passed
    assert rows["c"].detail.startswith("follows from a.")


def test_without_a_cause_upstream_a_failure_is_its_own(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(evidence, monkeypatch, a=True, b=True, c=False)["c"].status is Status.FAILED


def test_a_check_that_compares_nothing_fails(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ran(evidence, monkeypatch, a=None)["a"]
    assert (row.status, row.detail) == (Status.FAILED, "nothing compared")


def test_only_what_is_asked_for_runs(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ran(evidence, monkeypatch, ("b", "d"), a=True, b=True, c=True, d=True)) == {"b", "d"}


def test_what_does_not_apply_is_left_out(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = replace(outcome("a", True), inapplicable=lambda evidence: "no subject")
    monkeypatch.setattr(registry, "CHECKS", (silent, outcome("d", True)))
    assert {row.check for row in run_checks(evidence)} == {"d"}


def test_every_cause_is_a_check_that_comes_before() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for check in CHECKS:
        assert all(names.index(cause) < names.index(check.name) for cause in check.follows)
        assert (check.run.__doc__ or "").strip()


def test_a_recording_without_its_mask_fails_and_does_not_crash(case: Case, evidence: Evidence) -> None:
    from parity.prototypes.recorded import load_recorded

    evidence.expected = load_recorded(case)
    evidence.found = replace(load_recorded(case), run="port")
    del evidence.expected.tensors["mb0.batch.attention_mask"]
    failed = {row.check for row in run_checks(evidence, ("batches", "forward", "targets")) if not row.passed}
    assert failed == {"batches", "forward", "targets"}


def test_checks_that_depend_on_no_case_run_once() -> None:
    every = {check.name for check in CHECKS}
    done = {("hass", name) for name in every}
    assert set(checks_for("hass", set())) == set(checks_for("eagle3", done)) == every
    assert set(checks_for("hass", done)) == every - {"initial"}


def test_a_refusal_on_the_way_is_a_failed_row(evidence: Evidence) -> None:
    subject = evidence.subject("initial")
    fine = subject.row("files", "one", 0.0, 0.0, True)

    def rows() -> Iterator[Row]:
        yield fine
        raise InputError("file", "field", "found", "expected")

    first, last = until_refused(subject, rows())
    assert first is fine
    assert not last.passed
    assert last.detail == "file: field: found found, expected expected"
    assert until_refused(subject, [fine]) == [fine]
