"""The report as one HTML file that needs nothing else: no network, no scripts to be useful, light and dark.

What a page says, and in which order, is in the templates beside this module; here are the plain values they draw.
Whatever a report holds reaches them as text and is escaped there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray

from parity.differences import Ledger
from parity.files import write_whole
from parity.report import summary
from parity.report.figures import Axes, Series, draw
from parity.report.ledger import LINES, difference_lines, headline, summed_up
from parity.report.summary import SIGHTS, count, ended, grouped, severity, short, sights, unique, words
from parity.verdict import Curve, GradientFlow, Report, Row, Status

UNITS = {"loss": "loss (nats)", "grad_norm": "gradient norm"}
X_LABEL = "micro-batch, counted from 0"


@dataclass(frozen=True)
class Table:
    """Columns by name and kind (``name``, ``number`` or nothing), and lines of cells."""

    columns: Sequence[tuple[str, str]]
    lines: Sequence[Sequence[Any]]


class Panel(NamedTuple):
    """One of several side by side: a title, a drawing, what each line's style stands for, remarks."""

    title: str
    drawing: Markup
    legend: Sequence[tuple[str, str]]
    remarks: Sequence[str]


def write_html(report: Report, path: str | Path) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_whole(Path(path), render_html(report))


def render_html(report: Report) -> str:
    """The page as text."""
    checks, lines = matrix(report)
    compared = grouped((row for row in report.rows if row.status is not Status.NOT_APPLICABLE), attrgetter("case"))
    page = _template().render(
        title="Parity report",
        report=report,
        counted=Table([("what", "name"), ("passed", "number"), ("of", "number")], summary.counted(report)),
        anchors={case: number for number, case in enumerate(unique(row.case for row in report.rows), 1)},
        checks=checks,
        matrix=lines,
        skipped={(skip.case, skip.check) for skip in report.skips},
        failures=grouped(ended(report.rows, Status.FAILED), attrgetter("case")),
        blocked=summary.blocked(report),
        ledgers=[_ledger_tables(one, ended(report.rows, Status.FAILED)) for one in report.ledgers],
        planted={case: Table([(name, "") for name in SIGHTS], lines) for case, lines in sights(report).items()},
        curves=curves(report),
        errors={case: sorted(rows, key=severity, reverse=True) for case, rows in compared.items()},
        flows={case: flows(found, report.baseline) for case, found in _by_case(report.gradient_flow).items()},
        environment=environment(report.environment),
        absent=summary.not_applicable(report),
    )
    return page.lstrip()


def _template() -> Template:
    """Every value in it is written by :func:`words` and escaped; what it misses is an error."""
    loader = FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "autoescape": True}
    made = Environment(loader=loader, undefined=StrictUndefined, finalize=words, **options)
    made.filters.update(short=short, count=count, breakable=breakable)
    made.globals.update(worst=summary.worst, status_of=summary.status_of, Status=Status, UNITS=UNITS, bar=bar)
    return made.get_template("report.html.j2")


def breakable(name: Any) -> Markup:
    """The name, escaped, with the places marked where a narrow column may break it."""
    escaped = str(Markup.escape(words(name)))
    for mark in "._/":
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)


def bar(ratio: float) -> int:
    """Per cent of a bar that goes from a ten-thousandth of the limit to ten thousand times; NaN fills it."""
    return 100 if math.isnan(ratio) else round(np.interp(math.log10(ratio), (-4, 4), (0, 100))) if ratio else 0


def matrix(report: Report) -> tuple[list[str], dict[tuple[str, str], dict[str, list[Row]]]]:
    """Checks, and by case and run the rows of each; a case that was only skipped has none.

    Checks come in the order of the fullest case, so that one that is rare does not jump the queue.
    """
    lines = grouped(report.rows, lambda row: (row.case, row.run))
    judged = {case for case, _ in lines}
    lines |= {(skip.case, ""): [] for skip in report.skips if skip.case not in judged}
    fullest_first = sorted(lines.values(), key=lambda rows: -len({row.check for row in rows}))
    checks = unique([*(row.check for rows in fullest_first for row in rows), *(s.check for s in report.skips)])
    return checks, {line: grouped(rows, attrgetter("check")) for line, rows in lines.items()}


def _ledger_tables(ledger: Ledger, failed: list[Row]) -> dict[str, Any]:
    """What a case comes to, and every quantity that differs, as tables of plain cells; the last marks what is left."""
    shown = [line for line in ledger.lines if line.differs]
    lines = [[*cells, "failed" if line.left else ""] for cells, line in zip(difference_lines(ledger), shown)]
    return {
        "case": ledger.case,
        "headline": headline(ledger),
        "left": sum(line.left for line in shown),
        "sum": Table([("", "name"), ("", "")], summed_up(ledger, failed)),
        "lines": Table([(name, "" if n else "name") for n, name in enumerate(LINES)], lines),
    }


def curves(report: Report) -> dict[str, list[Panel]]:
    """By quantity, loss first, since it is what readers look for, a panel a case."""
    quantities = grouped(sorted(report.curves, key=lambda curve: curve.quantity != "loss"), attrgetter("quantity"))
    return {
        quantity: [_curve_panel(curves, report.baseline) for curves in _by_case(found).values()]
        for quantity, found in quantities.items()
    }


def _by_case(found: Sequence[Any]) -> dict[str, list[Any]]:
    return grouped(found, attrgetter("case"))


def _curve_panel(found: list[Curve], baseline: str) -> Panel:
    base, *others = ordered = sorted(found, key=lambda curve: curve.run != baseline)
    styles = ["base", *(f"run{index % 4}" for index in range(len(others)))]
    lines = [Series(range(len(c.values)), c.values, style) for c, style in zip(ordered, styles, strict=True)]
    gaps = [relative_differences(base.values, curve.values) for curve in others]
    axes = [Axes(UNITS.get(base.quantity, "value"), lines)]
    if any(((gap > 0) & np.isfinite(gap)).any() for gap in gaps):
        apart = [Series(range(len(gap)), gap.tolist(), style) for gap, style in zip(gaps, styles[1:], strict=True)]
        axes.append(Axes("relative difference", apart, log=True, height=1.25))
    drawing = draw(f"{base.quantity} of {base.case}", X_LABEL, *axes)
    remarks = [_compared(base, curve, gap) for curve, gap in zip(others, gaps, strict=True)]
    remarks += [_not_finite(curve) for curve in ordered]
    return Panel(base.case, drawing, [(c.run, s) for c, s in zip(ordered, styles)], list(filter(None, remarks)))


def relative_differences(base: Sequence[float], other: Sequence[float]) -> NDArray[np.float64]:
    """|other - base| / |base| at every position both have; equal values differ by 0, whatever they are."""
    length = min(len(base), len(other))  # a remark names lengths that differ
    a, b = np.asarray(base[:length], dtype=float), np.asarray(other[:length], dtype=float)
    with np.errstate(all="ignore"):
        return np.where(a == b, 0.0, np.abs(b - a) / np.abs(a))


def _compared(base: Curve, curve: Curve, gap: NDArray[np.float64]) -> str:
    if len(base.values) != len(curve.values):
        return f"{curve.run} has {count(len(curve.values), 'value')}, {base.run} has {len(base.values)}"
    if not gap.any():
        return f"{curve.run}: exactly equal at every micro-batch ({count(len(gap))})"
    finite = gap[np.isfinite(gap)]
    return f"{curve.run}: at most {short(float(np.max(finite)))} apart, relative" if finite.size else ""


def _not_finite(curve: Curve) -> str:
    where = np.flatnonzero(~np.isfinite(np.asarray(curve.values, dtype=float)))
    values = count(len(where), "value is", "values are")
    return f"{curve.run}: {values} not finite, first at {where[0]}" if len(where) else ""


def flows(found: Sequence[GradientFlow], baseline: str) -> list[list[Any]]:
    """A line for each parameter and what became of it, of the runs that read the same, what needs attention first.

    A fault that the baseline has too is worth a word, not an alarm. The last two cells: is it trained, is it marked?
    """
    expected = {(flow.parameter, flow.fault) for flow in found if flow.run == baseline}

    def cells(flow: GradientFlow) -> tuple[Any, ...]:
        known = bool(flow.fault) and (flow.parameter, flow.fault) in expected
        state = flow.fault or ("trains" if flow.trainable else "frozen")
        said = f"{state}, as in {baseline}" if known else state
        mark = "failed" if flow.fault and not known else ""
        return flow.parameter, said, short(flow.grad_max), short(flow.moved), flow.trainable, mark

    by_parameter = [flow for flows in grouped(found, attrgetter("parameter")).values() for flow in flows]
    same = grouped(by_parameter, cells)
    lines = [[key[0], [flow.run for flow in flows], *key[1:]] for key, flows in same.items()]
    return sorted(lines, key=lambda line: not line[-1])


def environment(found: Mapping[str, Any]) -> Table:
    """A line for each name; a column for this run, and one for each mapping, which is a side's own environment."""
    sides = {str(key): value for key, value in found.items() if isinstance(value, dict)}
    own = {key: value for key, value in found.items() if not isinstance(value, dict)}
    columns = {"this run": own, **sides} if own else sides
    names = unique(name for values in columns.values() for name in values)
    lines = [[name, *(values.get(name, "") for values in columns.values())] for name in names]
    return Table([("", "name"), *((column, "") for column in columns)], lines)
