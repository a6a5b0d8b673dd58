"""The verdict table: a line per case and run, a cell per check, a link from every cell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from parity.report.numbers import short
from parity.report.summary import Group, grouped, margin, unique
from parity.verdict import Report, Skip, Status

TINY = 0.01
"""Shares of a tolerance below this are not worth their digits in a table."""


@dataclass(frozen=True)
class Cell:
    """One check of one case and run: a word, a figure beside it, where a click leads."""

    check: str
    state: str
    word: str
    figure: str
    link: str


@dataclass(frozen=True)
class Line:
    """One case and run of the verdict table."""

    case: str
    run: str
    cells: tuple[Cell, ...]


def anchors(names: Iterable[str]) -> dict[str, str]:
    """A link target per name, safe in a URL and unlike any other."""
    return {name: f"{index}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:60]}" for index, name in enumerate(unique(names), 1)}


def matrix(report: Report) -> tuple[list[str], list[Line]]:
    """The checks, and for each case and run one cell per check."""
    checks = _in_order(report)
    groups = grouped(report.rows, lambda row: (row.case, row.run, row.check))
    lines = unique([*((row.case, row.run) for row in report.rows), *_only_skipped(report)])
    links, skipped = anchors(row.case for row in report.rows), {(skip.case, skip.check): skip for skip in report.skips}

    def cell(case: str, run: str, check: str) -> Cell:
        return _cell(check, groups.get((case, run, check)), skipped.get((case, check)), links.get(case))

    return checks, [Line(case, run, tuple(cell(case, run, check) for check in checks)) for case, run in lines]


def _in_order(report: Report) -> list[str]:
    """Checks in the order of the fullest case, so that one that is rare does not jump the queue."""
    by_line = grouped(report.rows, lambda row: (row.case, row.run))
    fullest_first = sorted(by_line.values(), key=lambda group: -len(unique(row.check for row in group.rows)))
    return unique([*(row.check for group in fullest_first for row in group.rows), *(s.check for s in report.skips)])


def _only_skipped(report: Report) -> list[tuple[str, str]]:
    compared = {row.case for row in report.rows}
    return [(skip.case, "") for skip in report.skips if skip.case not in compared]


def _cell(check: str, group: Group | None, skip: Skip | None, anchor: str | None) -> Cell:
    if group is None:
        return Cell(check, "skipped", "skipped", "", "#skips") if skip else Cell(check, "none", "", "", "")
    ratio = margin(group.worst) if group.worst else None
    figure = short(ratio, 2) if ratio is not None else ""
    if group.status is Status.FAILED:
        return Cell(check, "failed", "FAIL", figure, f"#failed-{anchor}")
    if group.status is Status.BLOCKED:
        return Cell(check, "blocked", "blocked", "", f"#errors-{anchor}")
    tiny = ratio is not None and 0 < ratio < TINY
    return Cell(check, "passed", "pass", f"<{TINY}" if tiny else figure, f"#errors-{anchor}")
