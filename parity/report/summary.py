"""What the rows of a report amount to: margins, groups and the verdict in one line.

The terminal and the HTML page both say what this module finds, so they cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from parity.report.numbers import count, short
from parity.verdict import Report, Row, Status

Key = TypeVar("Key", bound=Hashable)


def margin(row: Row) -> float | None:
    """Measured over allowed: 0 is equal, above 1 is too far. None when the row carries no numbers."""
    if row.measured is None or row.allowed is None:
        return None
    if math.isnan(row.measured) or math.isnan(row.allowed):
        return math.nan
    if row.measured == 0:
        return 0.0
    return abs(row.measured) / row.allowed if row.allowed else math.inf


def severity(row: Row) -> tuple[int, bool, float]:
    """Sort key, the worst last: by status, then NaN, then by margin. Blocked rows say nothing and are the least."""
    ratio = margin(row)
    is_nan = ratio is not None and math.isnan(ratio)
    rank = (Status.NOT_APPLICABLE, Status.BLOCKED, Status.PASSED, Status.FAILED).index(row.status)
    return rank, is_nan, -1.0 if ratio is None or is_nan else ratio


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """The rows by falling severity; equals stay in the order of the report."""
    return sorted(rows, key=severity, reverse=True)


@dataclass(frozen=True)
class Group:
    """Some rows that are judged together."""

    rows: tuple[Row, ...]

    def of(self, status: Status) -> int:
        """How many rows ended with this status."""
        return sum(row.status is status for row in self.rows)

    @property
    def status(self) -> Status:
        """Failed if any row failed, else blocked if any was blocked, else passed."""
        return next((s for s in (Status.FAILED, Status.BLOCKED) if self.of(s)), Status.PASSED)

    @property
    def worst(self) -> Row | None:
        """The row nearest to or furthest beyond its tolerance; blocked rows say nothing and do not count."""
        judged = [row for row in self.rows if row.status is not Status.BLOCKED]
        return max(judged, key=severity, default=None)

    @property
    def cases(self) -> list[str]:
        """The cases of these rows, in order."""
        return unique(row.case for row in self.rows)


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, Group]:
    """The rows by key, in the order in which the keys first appear."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return {name: Group(tuple(members)) for name, members in found.items()}


def unique(names: Iterable[Key]) -> list[Key]:
    """The names without repeats, in order."""
    return list(dict.fromkeys(names))


def failed(report: Report) -> list[Row]:
    """The failed rows, in the order of the report."""
    return [row for row in report.rows if row.status is Status.FAILED]


def blockers(report: Report) -> dict[tuple[str, str], str]:
    """For each (case, run) the first check that failed: the one to mend first, which blocks what follows."""
    found: dict[tuple[str, str], str] = {}
    for row in failed(report):
        found.setdefault((row.case, row.run), row.check)
    return found


def verdict_line(report: Report) -> str:
    """``PASS: ...`` or ``FAIL: ...`` with the counts and the worst margin."""
    if not report.rows:
        return "FAIL: 0 comparisons. Nothing was compared, so nothing was shown."
    everything = Group(tuple(report.rows))
    total = count(len(report.rows), "comparison")
    if report.passed:
        return f"PASS: {total}, all within tolerance; {closest_call(everything)}"
    blocked = everything.of(Status.BLOCKED)
    tail = f", {count(blocked)} blocked by an earlier failure" if blocked else ""
    return f"FAIL: {count(everything.of(Status.FAILED))} of {total} failed{tail}"


def closest_call(group: Group) -> str:
    """Which comparison came nearest to its tolerance, and how near."""
    row = group.worst
    ratio = margin(row) if row else None
    if row is None or ratio is None:
        return "none of them carries a number"
    if ratio == 0:
        return "all measured errors are exactly 0"
    return f"the worst used {short(ratio)} of its tolerance ({row.check}, {row.case}, {row.tensor or row.quantity})"
