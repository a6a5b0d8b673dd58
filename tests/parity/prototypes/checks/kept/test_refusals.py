"""Refusals are held to their words, and words to a refusal that says them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parity.prototypes.case import Case
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.checks.kept import refusals


def test_words_that_belong_to_no_attempt_fail(
    case: Case, port_evidence: Callable[[Case], Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(refusals.SAID, "no rates", "found 7 rates")
    monkeypatch.setitem(refusals.SAID, "misspelt", "found anything")
    failed = [row for row in refusals.check_refusals(port_evidence(case)) if not row.passed]
    assert [row.tensor for row in failed] == ["no rates", "words that nobody listened for"]
    assert "misspelt" in failed[1].detail
