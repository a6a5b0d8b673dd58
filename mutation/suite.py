"""What of ``parity run`` judges a mutant: every check on the port's side of every recorded case, until one fails.

Imported by the process that judges, after the mutant is in place. Left out of ``parity run``, which can only let more
mutants live: the reference's side, which shares no code with the ports; throughput, whose times no two runs share; the
equivalence over seeds, which takes as long as all the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from parity import fixtures
from parity.case import Case, find_cases
from parity.checks import CHECKS, checks_for
from parity.checks.evidence import Evidence
from parity.judge import PORT, recorded_baseline
from parity.result import Row
from parity.select import matches
from ports.commands import hush_libraries

RUN = "run"
"""The part of a case that trains the port; the others are the checks by name."""

Parts = dict[str, list[str]]
"""Case -> its parts that a mutant can change."""

Around = Callable[[str, str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Killed:
    """The first thing that a mutant broke: a check, or an exception while ``check`` ran."""

    case: str
    check: str
    detail: str
    exception: str = ""


def cases(keyword: str = "") -> list[Case]:
    """The recorded cases that the port takes part in, and whose name fits, as ``parity run -k`` reads it."""
    return [
        case
        for case in find_cases(fixtures.RECORDINGS)
        if PORT.leaves_out(case) is None and matches(keyword, case.name)
    ]


def judge(parts: Parts | None, around: Around = lambda case, part: nullcontext(), keyword: str = "") -> Killed | None:
    """Run the cases in the order of ``parts``; without, all whose name fits ``keyword``.

    ``around(case, part)`` is entered around every part.
    """
    hush_libraries()
    every, done = {case.name: case for case in cases(keyword if parts is None else "")}, set[tuple[str, str]]()
    for name in every if parts is None else parts:
        case = every[name]
        wanted = set(checks_for(case.algorithm, done)) if parts is None else set(parts[name])
        killed = _judge_case(case, wanted, around)
        done |= {(case.algorithm, check.name) for check in CHECKS if case.dtype == "fp32"}
        if killed:
            return killed
    return None


def _judge_case(case: Case, wanted: set[str], around: Around) -> Killed | None:
    part = RUN
    try:
        with recorded_baseline(case) as (_, expected), _evidence(case, expected, around) as evidence:
            for check in CHECKS:
                if check.name not in wanted or check.inapplicable(evidence):
                    continue
                part = check.name
                with around(case.name, part):
                    rows = check.run(evidence)
                if not rows or not all(row.passed for row in rows):
                    return Killed(case.name, part, _first_failure(rows))
    except Exception as error:
        return Killed(case.name, part, str(error)[:200], type(error).__name__)
    return None


@contextmanager
def _evidence(case: Case, expected: Any, around: Around) -> Iterator[Evidence]:
    side = PORT.evidence(case, expected)
    with around(case.name, RUN):
        evidence = side.__enter__()
    try:
        yield evidence
    finally:
        side.__exit__(None, None, None)


def _first_failure(rows: list[Row]) -> str:
    failed = next((row for row in rows if not row.passed), None)
    return "nothing compared" if failed is None else f"{failed.quantity} {failed.tensor}: {failed.detail}"[:200]


class Stopwatch:
    """Seconds of processor time by case and part."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, case: str, part: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds.setdefault(case, {})[part] = time.process_time() - start
