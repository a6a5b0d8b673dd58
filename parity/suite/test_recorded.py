"""Every check of every case against the recordings: the port and the reference."""

from __future__ import annotations

from typing import Any

import pytest

from parity.prototypes.checks import CHECKS, run_checks
from parity.suite.conftest import SIDES, cases_of
from parity.verdict import Row


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    cases = cases_of(metafunc.config)
    chosen = [(case, side) for case in cases for side in SIDES.values() if side.leaves_out(case) is None]
    metafunc.parametrize(("case", "side"), chosen, ids=[f"{case.name}-{side.name}" for case, side in chosen])


@pytest.mark.parametrize("check", [check.name for check in CHECKS])
def test_check(case: Any, side: Any, check: str, store: Any, compared: list[Any]) -> None:
    evidence = store.recorded(case, side)
    chosen = next(entry for entry in CHECKS if entry.name == check)
    reason = chosen.inapplicable(evidence)
    if reason:
        assert not run_checks(evidence, only=[check])
        return
    rows = run_checks(evidence, only=[check])
    compared += rows
    assert rows
    assert not describe(rows)


def describe(rows: list[Row]) -> str:
    """The rows that did not pass, one a line."""
    return "\n".join(
        f"{row.tensor or row.quantity}: {row.measured} > {row.allowed} {row.detail}" for row in rows if not row.passed
    )
