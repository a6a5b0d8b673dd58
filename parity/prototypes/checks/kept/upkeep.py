"""What a run leaves on the disk, how it is written, and what another run makes of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from parity.compare import Subject
from parity.prototypes.checks.evidence import Evidence, until_refused
from parity.prototypes.checks.kept.going_on import check_going_on
from parity.prototypes.checks.kept.stays import check_what_stays
from parity.prototypes.checks.kept.upkeep_parts import check_parts
from parity.prototypes.checks.kept.written import check_writing
from parity.verdict import Row


def check_upkeep(evidence: Evidence) -> list[Row]:
    """By name: the checkpoints that stay, the one a run goes on from, the metrics, and the parts beneath."""
    with tempfile.TemporaryDirectory() as name:
        folder, subject = Path(name), evidence.subject("upkeep")
        return until_refused(subject, _rows(evidence, subject, folder))


def _rows(evidence: Evidence, subject: Subject, folder: Path) -> Iterator[Row]:
    yield from check_writing(subject, folder)
    yield from check_parts(evidence, subject, folder / "parts")
    yield from check_what_stays(evidence, folder)
    yield from check_going_on(evidence, folder)
