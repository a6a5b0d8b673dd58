"""The report in a terminal: a table of checks for each run, every failure with its detail, the verdict as last line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.report.ledger import print_ledgers
from parity.report.summary import Group, blocked, count, ended, grouped, not_applicable, short, unique
from parity.verdict import Report, Row, Status

STYLES = {Status.PASSED: "green", Status.FAILED: "bold red", Status.BLOCKED: "yellow", Status.NOT_APPLICABLE: "dim"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report to ``console`` (the standard output when None); it reads well from 80 columns on."""
    console = console or Console()
    for run in unique(row.run for row in report.rows if row.compared):
        console.print(_table(run, [row for row in report.rows if row.run == run and row.compared]))
    _print_failures(report, console)
    _section(
        console, "Blocked: computed, but not judged, since an earlier check of the same case failed", blocked(report)
    )
    absent = ended(report, Status.NOT_APPLICABLE)
    reasons = [f"{reason}: {checks} ({runs}; {cases})" for reason, checks, runs, cases in not_applicable(report)]
    _section(console, f"Not applicable ({count(len(absent))})", reasons)
    skips = [f"{skip.check} · {skip.case}: {skip.reason}; to run it: {skip.remedy}" for skip in report.skips]
    _section(console, f"Skipped ({count(len(skips))})", skips)
    print_ledgers(report.ledgers, console)
    names = unique(deviation.id for deviation in report.deviations)
    _section(console, "Known deviations in force", [", ".join(names)] if names else [])
    _section(console, "Notes", report.notes)
    console.print()
    console.print(Text(report.verdict_line(), style="bold green" if report.passed else "bold red"), soft_wrap=True)


def _table(run: str, rows: list[Row]) -> Table:
    """A line for each check and what it was held against."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold", title_justify="left")
    table.title = Text(f"\n{run}", style="bold")
    for name in ("check", "against", "cases", "passed", "worst", "where", "verdict"):
        numeric = name in ("cases", "passed", "worst")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "where", overflow="ellipsis")
    for (check, against), group in grouped(rows, lambda row: (row.check, row.against)).items():
        table.add_row(check, against.value, *_cells(group))
    table.caption = Text("worst = largest measured / allowed; above 1 fails", style="dim")
    table.caption_justify = "left"
    return table


def _cells(group: Group) -> list[Text]:
    worst = group.worst
    name = f"{worst.case} {worst.tensor}".strip() if worst and worst.ratio != 0 else ""
    failed, held = group.of(Status.FAILED), group.of(Status.BLOCKED)
    word = f"FAIL ({count(failed)})" if failed else f"blocked ({count(held)})" if held else "pass"
    passed = f"{count(group.of(Status.PASSED))} of {count(len(group.rows))}"
    cells = [count(len(group.cases)), passed, short(worst.ratio if worst else None)]
    where = Text(name, no_wrap=True, overflow="ellipsis")  # the column gives way: the others are never cut
    return [*map(Text, cells), where, Text(word, style=STYLES[group.status])]


def _print_failures(report: Report, console: Console) -> None:
    rows = ended(report, Status.FAILED)
    if rows:
        console.print(Text(f"\nFailed ({count(len(rows))})", style="bold"))
    for (check, case, run, against), group in grouped(
        rows, lambda row: (row.check, row.case, row.run, row.against.value)
    ).items():
        _line(console, f"{check} · {case} · {run} against {against}", 1, "red")
        for row in group.rows:
            _print_failure(row, console)


def _print_failure(row: Row, console: Console) -> None:
    name = f"{row.tensor} ({row.quantity})" if row.tensor else row.quantity
    numbers = f": measured {short(row.measured)}, allowed {short(row.allowed)}, ratio {short(row.ratio)}"
    _line(console, name + (numbers if row.measured is not None else ""), 2)
    if row.detail:
        _line(console, row.detail, 3)
    if row.hint:
        _line(console, f"hint: {row.hint}", 3, "cyan")


def _section(console: Console, heading: str, lines: list[str]) -> None:
    if lines:
        console.print(Text(f"\n{heading}", style="bold"))
    for line in lines:
        _line(console, line, 1)


def _line(console: Console, text: str, depth: int, style: str = "") -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2 * depth)))
