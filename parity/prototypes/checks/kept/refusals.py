"""What a run is not made of: records, checkpoints and settings that must be refused, each with the field that is wrong.

A port that trained on them would give numbers, and nobody would know.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from parity.compare import Subject, compare_value
from parity.errors import InputError
from parity.prototypes.checks.beyond.forms import Dialogue, read_dialogues
from parity.prototypes.checks.evidence import Evidence, until_refused
from parity.prototypes.checks.kept.attempts import Attempt
from parity.prototypes.checks.kept.bad_checkpoints import bad_checkpoints
from parity.prototypes.checks.kept.bad_records import bad_records
from parity.prototypes.checks.kept.bad_sources import bad_sources
from parity.verdict import Row

SAID = {
    "input_ids missing (ckpt)": "found missing",
    "ids as a list": "found list",
    "state without processes": r"found \[\]",
    "state with a long word for a count": f"found '{'x' * 79}, expected",
    "no generators": r"\(0,\)",
    "a moment missing": r"found missing \['step.draft.fc.weight'\], unexpected \[\]",
    "a moment too many": r"found missing \[\], unexpected \['exp_avg.nothing'\]",
    "a rate too many": "found 2 rates",
    "no rates": "found 0 rates",
    "a loss that is no number": "nan at optimizer step 2, micro-batch ",
    "a place behind the pass": r"found \[999\]",
    "an origin with two faults": "found 'five'",
    "a byte too few": r"found \d+ bytes",
    "a byte too many": r"found \d+ bytes",
    "arrow data of no rows": "found no rows",
    "another lr": r"found lr was \S+, now 0.5, expected the run that was saved; --resume_anyway .*, --weights_only",
    "another verifier, anyway": r"found verifier was forged, now \S+, expected the run that was saved; --weights_only",
}
"""By name, a pattern of what else a refusal must say."""


def check_refusals(evidence: Evidence) -> list[Row]:
    """Every attempt ends in an InputError that names its field, or in none where there is nothing wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dialogue = read_dialogues(evidence.case, evidence.draft.config)[0]
        return until_refused(evidence.subject("refusals"), _rows(evidence, dialogue, folder))


def _rows(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Row]:
    subject, unheard = evidence.subject("refusals"), set(SAID)
    for name, field, attempt in _attempts(evidence, dialogue, folder):
        yield _row(subject, name, field, _field_of(attempt, SAID.get(name, "")))
        unheard.discard(name)
    yield compare_value(subject, "refusal", "words that nobody listened for", [], sorted(unheard))


def _attempts(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    yield from bad_records(evidence, dialogue, folder)
    yield from bad_sources(evidence, dialogue, folder)
    yield from bad_checkpoints(evidence, folder / "checkpoints")


def _field_of(attempt: Callable[[], object], said: str = "") -> str:
    """The field that a refusal names, all of the refusal where it does not say ``said``; nothing if accepted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt()
    except InputError as error:
        return error.field or "?" if re.search(said, str(error)) else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return ""


def _row(subject: Subject, name: str, expected: str, found: str) -> Row:
    detail = "" if expected == found else f"expected {expected or 'acceptance'}, found {found or 'acceptance'}"
    return subject.row("refusal", name, float(expected != found), 0.0, expected == found, detail)
