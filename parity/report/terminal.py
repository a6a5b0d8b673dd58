"""The report in a terminal: a table of verdicts, every failure with its detail, one last line that says it all."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.report.numbers import count, listing, short
from parity.report.summary import Group, blockers, failed, grouped, margin, unique, verdict_line
from parity.verdict import Report, Row, Status

STYLES = {Status.PASSED: "green", Status.FAILED: "bold red", Status.BLOCKED: "yellow", Status.NOT_APPLICABLE: "dim"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report to ``console`` (the standard output when None); it reads well from 80 columns on."""
    console = console or Console()
    if report.rows:
        console.print(_verdict_table(report))
    _print_failures(report, console)
    _print_blocked(report, console)
    _print_skips(report, console)
    _print_remarks(report, console)
    console.print()
    console.print(Text(verdict_line(report), style="bold green" if report.passed else "bold red"))


def _verdict_table(report: Report) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for name in ("check", "run", "cases", "compared", "worst", "where", "verdict"):
        numeric = name in ("cases", "compared", "worst")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "where", overflow="ellipsis")
    groups = grouped(report.rows, lambda row: (row.run, row.check))
    for run in unique(run for run, _ in groups):
        for check in [check for name, check in groups if name == run]:
            table.add_row(*_verdict_cells(check, run, groups[run, check]))
        table.add_section()
    table.caption = Text("worst = largest measured / allowed; above 1 fails", style="dim")
    table.caption_justify = "left"
    return table


def _verdict_cells(check: str, run: str, group: Group) -> list[Text]:
    worst = group.worst
    ratio = short(margin(worst)) if worst else short(None)
    name = f"{worst.case} {worst.tensor}".strip() if worst and margin(worst) != 0 else ""
    where = Text(name, no_wrap=True, overflow="ellipsis")
    cells = [check, run, count(len(group.cases)), count(len(group.rows)), ratio]
    return [*map(Text, cells), where, Text(_verdict(group), style=STYLES[group.status])]


def _verdict(group: Group) -> str:
    if group.status is Status.PASSED:
        return "pass"
    word = "FAIL" if group.status is Status.FAILED else "blocked"
    return f"{word} ({count(group.of(group.status))})"


def _print_failures(report: Report, console: Console) -> None:
    rows = failed(report)
    if rows:
        _heading(console, f"Failed ({count(len(rows))})")
    for (check, case, run), group in grouped(rows, lambda row: (row.check, row.case, row.run)).items():
        _line(console, f"{check} · {case} · {run}", 1, "red")
        for row in group.rows:
            _print_failure(row, console)


def _print_failure(row: Row, console: Console) -> None:
    name = f"{row.tensor} ({row.quantity})" if row.tensor else row.quantity
    numbers = f"measured {short(row.measured)}, allowed {short(row.allowed)}, ratio {short(margin(row))}"
    _line(console, f"{name}: {numbers}" if row.measured is not None else name, 2)
    if row.detail:
        _line(console, row.detail, 3)
    if row.hint:
        _line(console, f"hint: {row.hint}", 3, "cyan")


def _print_blocked(report: Report, console: Console) -> None:
    rows = [row for row in report.rows if row.status is Status.BLOCKED]
    if not rows:
        return
    _heading(console, "Blocked: computed, but not judged, since an earlier check of the same case failed")
    causes = blockers(report)
    for check, group in grouped(rows, lambda row: row.check).items():
        by = unique(causes.get((row.case, row.run), "an earlier check") for row in group.rows)
        _line(console, f"{check}: {count(len(group.rows))} in {listing(group.cases)}, blocked by {listing(by)}", 1)


def _print_skips(report: Report, console: Console) -> None:
    if report.skips:
        _heading(console, f"Skipped ({count(len(report.skips))})")
    for skip in report.skips:
        _line(console, f"{skip.check} · {skip.case}: {skip.reason}", 1)
        _line(console, f"to run it: {skip.remedy}", 2, "cyan")


def _print_remarks(report: Report, console: Console) -> None:
    if report.deviations:
        names = unique(deviation.id for deviation in report.deviations)
        _heading(console, "Known deviations in force")
        _line(console, ", ".join(names), 1)
    if report.notes:
        _heading(console, "Notes")
    for note in report.notes:
        _line(console, note, 1)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _line(console: Console, text: str, depth: int, style: str = "") -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2 * depth)))
