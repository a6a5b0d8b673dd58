"""What rows amount to: groups, the worst of them, what blocked what; how values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from parity.files import strict_json, write_whole
from parity.verdict import UNCOUNTED, Planted, Report, Row, Sight, Status

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

MISSING = "–"
WORST_LAST = (Status.NOT_APPLICABLE, *UNCOUNTED, Status.PASSED, Status.BLOCKED, Status.FAILED)
"""Of a group, whose worst row decides."""
FORMAT_VERSION = 4


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by key, in the order in which the keys first appear."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def unique(names: Iterable[Key]) -> list[Key]:
    """The names without repeats, in order."""
    return list(dict.fromkeys(names))


def ended(rows: Iterable[Row], *statuses: Status) -> list[Row]:
    """Those of the rows that ended with one of these."""
    return [row for row in rows if row.status in statuses]


def status_of(rows: Iterable[Row]) -> Status:
    """Failed if any row failed, else blocked if any was blocked, else passed if any was compared."""
    return max((row.status for row in rows), key=WORST_LAST.index)


def severity(row: Row) -> tuple[bool, bool, bool, float]:
    """Sort key, the worst last: by status, then NaN, then by ratio. Blocked rows say nothing about their subject."""
    nan = row.ratio is not None and math.isnan(row.ratio)
    return row.status is Status.FAILED, row.passed, nan, -1.0 if row.ratio is None or nan else row.ratio


def worst(rows: Iterable[Row]) -> Row | None:
    """The row nearest to or furthest beyond its tolerance; blocked rows do not count."""
    return max(ended(rows, Status.PASSED, Status.FAILED), key=severity, default=None)


def counted(report: Report) -> list[tuple[str, int | str, int]]:
    """Lines of what a report comes to: a name, how many passed, of how many; then the rows that do not count."""
    found = report.counts()
    quantities = [(f"quantities of the {report.baseline}", found.matched, found.quantities)] * bool(found.quantities)
    planted = [("planted faults", found.seen, found.planted)] * bool(found.planted)
    checks = [(f"checks: {word}", *numbers) for word, numbers in found.checks.items()]
    return [*quantities, *planted, *checks, *(("not counted: " + word, "", n) for word, n in found.uncounted.items())]


def blocked(report: Report) -> list[str]:
    """A line for each check that was not judged: how many rows, where, and which failures they follow from."""
    return [
        f"{check}: {count(len(rows))} in {listing(row.case for row in rows)}, "
        + listing(row.detail.partition(". ")[0] for row in rows)
        for check, rows in grouped(ended(report.rows, Status.BLOCKED), attrgetter("check")).items()
    ]


def not_applicable(report: Report) -> list[tuple[str, str, str, str]]:
    """Reason, checks, runs and cases of what had no subject, by reason."""
    groups = grouped(ended(report.rows, Status.NOT_APPLICABLE), attrgetter("detail"))
    found = []
    for reason, rows in groups.items():
        checks, runs, cases = zip(*((row.check, row.run, row.case) for row in rows))
        found.append((reason, listing(checks, 8), listing(runs, 8), listing(cases, 8)))
    return found


def sights(report: Report) -> dict[str, list[list[str]]]:
    """By case, of every planted fault: its name and place, what became of it, by which check, how far beyond."""
    return {
        f"{case}, {run}: {summed(found)}": [_sight_cells(one) for one in found]
        for (case, run), found in grouped(report.planted, attrgetter("case", "run")).items()
    }


def summed(found: Iterable[Planted]) -> str:
    """``3 seen, 1 unseen``."""
    named = grouped(found, attrgetter("sight"))
    return ", ".join(f"{len(named[sight])} {sight.value}" for sight in Sight if sight in named)


def _sight_cells(one: Planted) -> list[str]:
    beyond = MISSING if one.beyond is None else "exact" if math.isinf(one.beyond) else f"{short(one.beyond)} times"
    told = f"{one.sight.value}, but at {one.size:g}" if one.sight is Sight.BELOW else one.sight.value
    seen = one.sight in (Sight.SEEN, Sight.BELOW)
    return [one.fault, one.place, told, one.check if seen else "", beyond if seen else "", "" if seen else one.detail]


SIGHTS = ("fault", "planted in", "", "seen by", "beyond its bound", "why not")


def short(value: float | None, digits: int = 3) -> str:
    """A few significant digits; ``–`` when there is no value, ``NaN`` and ``inf`` spelled out."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def words(value: Any) -> Any:
    """Any value as people read it; text stays what it is."""
    if value is None or isinstance(value, float):
        return short(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{key} {words(item)}" for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return ", ".join(str(words(item)) for item in value)
    return value.value if isinstance(value, Enum) else value


def count(number: int, noun: str = "", plural: str = "") -> str:
    """``1,234 rows``: thousands separated, the noun in its number."""
    return f"{number:,} {noun if number == 1 or not noun else plural or f'{noun}s'}".strip()


def listing(names: Iterable[str], limit: int = 4) -> str:
    """``a, b and c``, each name once; what lies beyond ``limit`` is only counted."""
    each = unique(names)
    if len(each) > limit:
        each = [*each[: limit - 1], f"{len(each) - limit + 1} more"]
    return " and ".join(filter(None, [", ".join(each[:-1]), *each[-1:]]))


def write_json(report: Report, path: str | Path) -> None:
    """Write the report to ``path`` for machines, whole or not at all: the verdict, its counts, every row and curve.

    Raises:
        InputError: ``path`` cannot be written.
    """
    head = {"format_version": FORMAT_VERSION, "passed": report.passed, "verdict": report.verdict_line()}
    rows, counts = [row.as_json() for row in report.rows], asdict(report.counts())
    write_whole(Path(path), strict_json({**head, "counts": counts, **asdict(report), "rows": rows}))
