"""What a run is not made of: records, checkpoints and settings that must be refused, each with the field that is wrong.

A port that trained on them would give numbers, and nobody would know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from parity.checks.beyond.forms import Dialogue, read_dialogues
from parity.checks.evidence import Evidence, until_refused
from parity.checks.kept.bad_checkpoints import bad_checkpoints
from parity.checks.kept.bad_records import bad_records, skipped_records
from parity.compare import Subject
from parity.errors import InputError
from parity.result import Row

Attempt = tuple[str, str, Callable[[], object]]
"""Name, the field that must be named, and what must be refused. An empty field: it must be accepted."""


def check_refusals(evidence: Evidence) -> list[Row]:
    """Every attempt ends in an InputError that names its field, or in none where there is nothing wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dialogue = read_dialogues(evidence.case, evidence.draft.config)[0]
        return until_refused(evidence.subject("refusals"), _rows(evidence, dialogue, folder))


def _rows(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Row]:
    yield from _judged(evidence, bad_records(evidence, dialogue, folder))
    yield from skipped_records(evidence, dialogue, folder / "skipped")
    yield from _judged(evidence, bad_checkpoints(evidence, folder / "checkpoints"))


def _judged(evidence: Evidence, attempts: Iterator[Attempt]) -> Iterator[Row]:
    for name, field, attempt in attempts:
        yield _row(evidence.subject("refusals"), name, field, _field_of(attempt))


def _field_of(attempt: Callable[[], object]) -> str:
    """The field that a refusal names; nothing if it was accepted."""
    try:
        attempt()
    except InputError as error:
        return error.field or "?"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return ""


def _row(subject: Subject, name: str, expected: str, found: str) -> Row:
    detail = "" if expected == found else f"expected {expected or 'acceptance'}, found {found or 'acceptance'}"
    return subject.row("refusal", name, float(expected != found), 0.0, expected == found, detail)
