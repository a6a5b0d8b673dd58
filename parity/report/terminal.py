"""The report in a terminal: a table of checks for each run, every failure with its detail, the verdict as last line."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.report.ledger import print_ledgers
from parity.report.summary import (
    SIGHTS,
    blocked,
    count,
    ended,
    grouped,
    not_applicable,
    short,
    sights,
    status_of,
    unique,
    worst,
)
from parity.verdict import Report, Row, Sight, Status

STYLES = {Status.PASSED: "green", Status.FAILED: "bold red", Status.BLOCKED: "yellow"}
UNCUT = 10_000
"""Columns of what is as wide as its lines."""

LEFT = ("check", "against", "where", "verdict")


def stdout_console() -> Console:
    """The standard output. A file, a pipe or the log of a CI has no edge at which words would be cut or folded."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=UNCUT)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report to ``console`` (:func:`stdout_console` when None); it reads well from 80 columns on."""
    console = console or stdout_console()
    for run, rows in grouped((row for row in report.rows if row.compared), lambda row: row.run).items():
        console.print(_table(run, rows))
    for heading, lines in _sections(report):
        if lines:
            console.print(Text(f"\n{heading}", style="bold"), *lines, sep="\n")
    print_ledgers(report.ledgers, ended(report.rows, Status.FAILED), console)
    for title, planted in sights(report).items():
        console.print(_planted(title, planted))
    console.print()
    console.print(Text(report.verdict_line(), style="bold green" if report.passed else "bold red"), soft_wrap=True)


def _titled(title: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold", title_justify="left")
    table.title = Text(f"\n{title}", style="bold")
    return table


def _table(run: str, rows: list[Row]) -> Table:
    """A line for each check and what it was held against."""
    table = _titled(run)
    for name in ("check", "against", "cases", "passed", "worst", "where", "verdict"):
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=name != "where")
    for (check, against), found in grouped(rows, lambda row: (row.check, row.against)).items():
        table.add_row(Text(check), against.value, *_cells(found))
    table.caption = Text("worst = largest measured / allowed; above 1 fails", style="dim")
    table.caption_justify = "left"
    return table


def _planted(title: str, lines: list[list[str]]) -> Table:
    """A line for each planted fault."""
    table = _titled(f"Planted faults of {title}")
    for name in SIGHTS:
        table.add_column(name, justify="right" if name.startswith("beyond") else "left")
    for cells in lines:
        table.add_row(*map(Text, cells), style=None if cells[2] == Sight.SEEN.value else "yellow")
    return table


def _cells(rows: list[Row]) -> list[Text]:
    top, status = worst(rows), status_of(rows)
    passed, those = count(len(ended(rows, Status.PASSED))), count(len(ended(rows, status)))
    verdict = {Status.FAILED: f"FAIL ({those})", Status.BLOCKED: f"blocked ({those})", Status.PASSED: "pass"}[status]
    cases, ratio = count(len({row.case for row in rows})), short(top.ratio if top else None)
    name = f"{top.case} {top.tensor}".strip() if top and top.ratio != 0 else ""
    where = Text(name, no_wrap=True, overflow="ellipsis")  # the column gives way: the others are never cut
    cells = map(Text, (cases, f"{passed} of {count(len(rows))}", ratio))
    return [*cells, where, Text(verdict, style=STYLES[status])]


def _sections(report: Report) -> Iterator[tuple[str, list[Padding]]]:
    """Everything that is not a pass, under its heading."""
    failed, absent = ended(report.rows, Status.FAILED), ended(report.rows, Status.NOT_APPLICABLE)
    reasons = [f"{reason}: {checks} ({runs}; {cases})" for reason, checks, runs, cases in not_applicable(report)]
    skips = [f"{skip.check} · {skip.case}: {skip.reason}; to run it: {skip.remedy}" for skip in report.skips]
    ids = unique(deviation.id for deviation in report.deviations)
    unseen = [f"{one.fault} · {one.case} · {one.run}: {one.place}" for one in report.planted if one.fails]
    heading = "Blocked: computed, but not judged, since an earlier check of the same case failed"
    yield f"Failed ({count(len(failed))})", list(_failures(failed))
    yield f"Planted, seen by no check, and not excused by Pair.unseen ({len(unseen)})", [*map(_line, unseen)]
    yield heading, [*map(_line, blocked(report))]
    uncounted = [f"{word}: {count(n)}" for word, n in report.counts().uncounted.items()]
    yield "Compared, and not counted", [*map(_line, uncounted)]
    yield f"Not applicable ({count(len(absent))})", [*map(_line, reasons)]
    yield f"Skipped ({count(len(skips))})", [*map(_line, skips)]
    yield "Known deviations in force", [_line(", ".join(ids))] if ids else []
    yield "Notes", [*map(_line, report.notes)]


def _failures(rows: list[Row]) -> Iterator[Padding]:
    places = grouped(rows, lambda row: f"{row.check} · {row.case} · {row.run} against {row.against.value}")
    for place, found in places.items():
        yield _line(place, style="red")
        for row in found:
            name = f"{row.tensor} ({row.quantity})" if row.tensor else row.quantity
            numbers = f": measured {short(row.measured)}, allowed {short(row.allowed)}, ratio {short(row.ratio)}"
            yield _line(name + (numbers if row.measured is not None else ""), depth=2)
            if row.detail:
                yield _line(row.detail, depth=3)
            if row.hint:
                yield _line(f"hint: {row.hint}", depth=3, style="cyan")


def _line(text: str, depth: int = 1, style: str = "") -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, 2 * depth), expand=False)
