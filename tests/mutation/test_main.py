"""Which mutants a run judges."""

from __future__ import annotations

import pytest

from mutation.__main__ import _wanted
from mutation.explanations import Explanation

ENTRIES = [Explanation("the same program", line="a + 0", equivalent=True), Explanation("no check has it", line="b")]


def record(outcome: str, line: str) -> dict[str, object]:
    return {"file": "x.py", "operator": "o", "outcome": outcome, "change": [f"-{line}", "+changed"]}


@pytest.mark.parametrize(
    ("known", "first", "again"),
    [
        (None, True, False),
        (record("killed", "a"), False, False),
        (record("survived", "a + 0"), False, False),
        (record("survived", "b"), False, True),
        (record("survived", "c"), False, True),
    ],
    ids=["never judged", "killed", "equivalent", "explained", "not explained"],
)
def test_what_is_judged(known, first, again) -> None:
    assert _wanted(known, None) is first
    assert _wanted(known, ENTRIES) is again
