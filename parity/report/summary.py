"""What rows amount to: groups, the worst of them, what blocked what, and how numbers are written for people."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from parity.errors import InputError
from parity.verdict import Report, Row, Status

Key = TypeVar("Key", bound=Hashable)

MISSING = "–"
WORST_LAST = (Status.NOT_APPLICABLE, Status.BLOCKED, Status.PASSED, Status.FAILED)


def severity(row: Row) -> tuple[int, bool, float]:
    """Sort key, the worst last: by status, then NaN, then by ratio. Blocked rows say nothing about their subject."""
    ratio = row.ratio
    is_nan = ratio is not None and math.isnan(ratio)
    return WORST_LAST.index(row.status), is_nan, -1.0 if ratio is None or is_nan else ratio


@dataclass(frozen=True)
class Group:
    """Some rows that are judged together."""

    rows: tuple[Row, ...]

    def of(self, status: Status) -> int:
        """How many rows ended with this status."""
        return sum(row.status is status for row in self.rows)

    @property
    def status(self) -> Status:
        """Failed if any row failed, else blocked if any was blocked, else passed if any was compared."""
        order = (Status.FAILED, Status.BLOCKED, Status.PASSED)
        return next((status for status in order if self.of(status)), Status.NOT_APPLICABLE)

    @property
    def worst(self) -> Row | None:
        """The row nearest to or furthest beyond its tolerance; blocked rows do not count."""
        judged = [row for row in self.rows if row.status in (Status.PASSED, Status.FAILED)]
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


def ended(report: Report, status: Status) -> list[Row]:
    """The rows that ended with this status, in the order of the report."""
    return [row for row in report.rows if row.status is status]


def blocked(report: Report) -> list[str]:
    """A line for each check that was not judged: how many rows, where, and the first failed check of the same run."""
    first: dict[tuple[str, str], str] = {}
    for row in ended(report, Status.FAILED):
        first.setdefault((row.case, row.run), row.check)
    return [
        f"{check}: {count(len(group.rows))} in {listing(group.cases)}, blocked by "
        + listing(unique(first.get((row.case, row.run), "an earlier check") for row in group.rows))
        for check, group in grouped(ended(report, Status.BLOCKED), lambda row: row.check).items()
    ]


def not_applicable(report: Report) -> list[tuple[str, str, str, str]]:
    """Reason, checks, runs and cases of what had no subject, by reason."""
    groups = grouped(ended(report, Status.NOT_APPLICABLE), lambda row: row.detail)
    names = ("check", "run", "case")
    return [
        (reason, *(listing(unique(getattr(row, name) for row in group.rows), 8) for name in names))  # type: ignore[misc]
        for reason, group in groups.items()
    ]


def short(value: float | None, digits: int = 3) -> str:
    """A few significant digits; ``–`` when there is no value, ``NaN`` and ``inf`` spelled out."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def count(number: int, noun: str = "", plural: str = "") -> str:
    """``1,234 rows``: thousands separated, the noun in its number."""
    words = [f"{number:,}", noun if number == 1 else plural or f"{noun}s"]
    return " ".join(words) if noun else words[0]


def scaled(value: float) -> str:
    """A large quantity with its SI prefix: ``1.53 G``."""
    prefixes = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, prefix = next((pair for pair in prefixes if math.isfinite(value) and abs(value) >= pair[0]), (1.0, ""))
    return f"{short(value / size)} {prefix}".strip()


def listing(names: list[str], limit: int = 4) -> str:
    """``a, b and c``; what lies beyond ``limit`` is only counted."""
    if len(names) > limit:
        names = [*names[: limit - 1], f"{len(names) - limit + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def write_whole(path: str | Path, text: str) -> None:
    """Write ``text`` to a neighbour of ``path`` and rename it: ``path`` is the old file or the whole new one.

    Raises:
        InputError: no such file can be written.
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        neighbour.write_text(text, encoding="utf-8", errors="replace")
        os.replace(neighbour, path)
    except OSError as error:
        raise InputError(path, "file", error.strerror or error, "a place that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            neighbour.unlink()
