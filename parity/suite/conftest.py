"""One evidence for each case and side, shared by the tests of all checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from parity.plugin import recordings_of
from parity.prototypes.case import Case, find_cases
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.judge import PORT, REFERENCE, Side, recorded_baseline
from parity.prototypes.live import ADAPTER_CHECKS, adapter_side, live_port_side, original_baseline

SIDES = {side.name: side for side in (REFERENCE, PORT)}


def cases_of(config: pytest.Config) -> list[Case]:
    """The session's recorded cases."""
    return find_cases(recordings_of(config))


class EvidenceStore:
    """Runs a side of a case when it is first asked for and keeps it to the end of the session."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.kept: dict[tuple[str, str], Evidence] = {}

    def recorded(self, case: Case, side: Side) -> Evidence:
        """Evidence against the recording."""
        key = (case.name, side.name)
        if key not in self.kept:
            run, expected = self.stack.enter_context(recorded_baseline(case))
            self.kept[key] = self.stack.enter_context(side.evidence(run, expected))
        return self.kept[key]

    def live(self, case: Case, prototype: Path, name: str) -> Evidence:
        """Evidence against the live original, which runs once for each case."""
        if ("original", case.name) not in self.kept:
            run, expected = self.stack.enter_context(original_baseline(prototype)(case))
            for side, evidence in (("port", live_port_side), ("adapter", adapter_side(prototype))):
                self.kept[side, case.name] = self.stack.enter_context(evidence(run, expected))
            self.kept["original", case.name] = self.kept["port", case.name]
        return self.kept[name, case.name]


@pytest.fixture(scope="session")
def store() -> Iterator[EvidenceStore]:
    """The session's evidence."""
    keeper = EvidenceStore()
    with keeper.stack:
        yield keeper


@pytest.fixture(scope="session")
def adapter_checks() -> tuple[str, ...]:
    """What a script on the adapter is held to."""
    return ADAPTER_CHECKS
