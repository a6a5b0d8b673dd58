"""The report as one HTML file that needs nothing else: no network, no scripts to be useful, light and dark.

A page is sections of blocks: tables, folds, panels, and rows that failed, which one template draws. Whatever a report
holds reaches the template as text and is escaped there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from parity.report.figures import Axes, Series, draw
from parity.report.ledger import CAUSES, KINDS, LINES, cause_lines, difference_lines, kind_lines, told
from parity.report.summary import (
    MISSING,
    Group,
    blocked,
    count,
    ended,
    grouped,
    not_applicable,
    scaled,
    severity,
    short,
    unique,
    write_whole,
)
from parity.verdict import Against, Curve, GradientFlow, Ledger, Report, Row, Speed, Status

FIRST_FAILURES, FIRST_ROWS = 8, 15
"""How many failures and comparisons of a case are shown before the rest is folded."""
TINY = 0.01
"""Shares of a tolerance below this are not worth their digits in a table."""
UNITS = {"loss": "loss (nats)", "grad_norm": "gradient norm", "lr": "learning rate", "accuracy": "accuracy"}
DEVIATIONS = {"id": "id", "where": "where", "effect": "effect", "choice": "what the ports do", "test": "shown by"}
SKIPS = {"check": "check", "case": "case", "reason": "why it did not run", "remedy": "how to run it"}
X_LABEL = "micro-batch, counted from 0"


@dataclass(frozen=True)
class Table:
    """Columns by name and kind (``name``, ``number`` or nothing), lines of cells, a class for each line."""

    kind: ClassVar[str] = "table"
    columns: tuple[tuple[str, str], ...]
    lines: Sequence[Sequence[Any]]
    style: str = ""
    marks: Sequence[str] = ()

    def markdown(self) -> str:
        """The same table in Markdown."""
        names = [name for name, _ in self.columns]
        return "\n".join(
            "| " + " | ".join(map(str, line)) + " |" for line in (names, ["---"] * len(names), *self.lines)
        )


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them; ``chip`` stands out beside it."""

    kind: ClassVar[str] = "fold"
    name: str
    summary: str
    blocks: Sequence[Block]
    anchor: str = ""
    opened: bool = False
    chip: str = ""


@dataclass(frozen=True)
class Panel:
    """One of several side by side: a title, what each line's style stands for, a drawing or a table, remarks."""

    title: str
    body: Markup | Table
    legend: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Panels:
    """Panels side by side, below each other where the page is narrow."""

    kind: ClassVar[str] = "panels"
    items: Sequence[Panel]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str
    anchor: str


Block = Table | Fold | Panels | Heading | Row


def write_html(report: Report, path: str | Path, title: str = "Parity report") -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_whole(path, render_html(report, title))


def render_html(report: Report, title: str = "Parity report") -> str:
    """The page as text."""
    blocks = {
        "counts": counts(report),
        "table": matrix(report),
        "failures": failures(report),
        "causes": causes(report.ledgers),
        "curves": curves(report),
        "errors": errors(report),
        "flow": flows(report),
        "speed": speeds(report.speeds),
        "environment": environment(report.environment),
        "deviations": listed(report.deviations, DEVIATIONS),
        "absent": absent(report),
        "skips": listed(report.skips, SKIPS),
    }
    return render(title, blocks, report=report, sentences=sentences(report))


def render(title: str, blocks: Mapping[str, Sequence[Block]], **more: Any) -> str:
    """A page of sections, each of the blocks under its name; of benchmarks, or of a ``report``."""
    template = templates().get_template("page.html.j2")
    return template.render(title=title, blocks=blocks, **{"report": None, **more})


def templates(autoescape: bool = True) -> Environment:
    """The templates of this folder; what a template misses is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(short=short, breakable=breakable)
    return made


def listed(items: Sequence[Any], columns: Mapping[str, str]) -> list[Block]:
    """A line for each item: its attributes, by the names of ``columns``, under their headings."""
    heads = tuple(
        (heading, "name" if name in ("id", "test", "check", "case") else "") for name, heading in columns.items()
    )
    return [Table(heads, [[getattr(item, name) for name in columns] for item in items])] if items else []


def breakable(name: Any) -> Markup:
    """The name, escaped, with the places marked where a narrow column may break it."""
    escaped = str(Markup.escape(name))
    for mark in "._/":
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)


def anchors(names: Iterable[str]) -> dict[str, str]:
    """A link target per name, safe in a URL and unlike any other."""
    return {name: f"{index}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:60]}" for index, name in enumerate(unique(names), 1)}


def sentences(report: Report) -> list[str]:
    """For someone who has never seen such a report: what was compared, and where to look first."""
    cases = unique(row.case for row in report.rows if row.compared)
    if not cases:
        return ["The skipped checks at the end say what each of them needs."] if report.skips else []
    said = [
        f"{count(len(cases), 'case')}. Each comparison takes one tensor or number that both sides computed, and asks "
        "whether they differ by no more than a fixed tolerance."
    ]
    first = next(iter(ended(report, Status.FAILED)), None)
    if first:
        said.append(f"Start with check {first.check} of {first.case} ({first.run}), the first that failed.")
    worst = Group(tuple(report.rows)).worst
    return [*said, _worst(worst)] if worst and worst.ratio is not None else said


def _worst(row: Row) -> str:
    place = f"{row.tensor or row.quantity} in check {row.check} of {row.case} ({row.run})"
    if row.passed:
        used = f"The closest call used {short(100 * (row.ratio or 0))} % of what is allowed: {place}."
        return used if row.ratio else "Every measured error is exactly 0."
    return f"The worst error is {short(row.ratio)} times what is allowed: {place}."


def counts(report: Report) -> list[Block]:
    """A line for each run, a column for each thing it was held against."""
    told = report.counts()
    held = [against for against in Against if any(of is against for _, of in told.compared)]
    lines = [
        [run, *(_of(told.compared.get((run, against))) for against in held), told.not_applicable.get(run, 0)]
        for run in told.runs
    ]
    columns = (("run", "name"), *((against.value, "number") for against in held), ("not applicable", "number"))
    return [Table(columns, lines)] if lines else []


def _of(numbers: tuple[int, int] | None) -> str:
    return f"{numbers[0]} of {numbers[1]}" if numbers else ""


def matrix(report: Report) -> list[Block]:
    """A line for each case and run, a cell for each check, a link from every cell."""
    groups = grouped(report.rows, lambda row: (row.case, row.run, row.check))
    links, skipped = anchors(row.case for row in report.rows), {(skip.case, skip.check) for skip in report.skips}
    compared = {row.case for row in report.rows}
    lines = unique(
        [*((row.case, row.run) for row in report.rows), *((s.case, "") for s in report.skips if s.case not in compared)]
    )
    checks = _in_order(report)
    cells = [
        [
            case,
            run,
            *(_cell(groups.get((case, run, check)), links.get(case), (case, check) in skipped) for check in checks),
        ]
        for case, run in lines
    ]
    columns = (("case", "name"), ("run", "name"), *((check, "cell") for check in checks))
    return [Table(columns, cells, style="matrix")] if lines else []


def _in_order(report: Report) -> list[str]:
    """Checks in the order of the fullest case, so that one that is rare does not jump the queue."""
    by_line = grouped(report.rows, lambda row: (row.case, row.run))
    fullest_first = sorted(by_line.values(), key=lambda group: -len(unique(row.check for row in group.rows)))
    return unique([*(row.check for group in fullest_first for row in group.rows), *(s.check for s in report.skips)])


def _cell(group: Group | None, anchor: str | None, skipped: bool) -> Markup | str:
    if group is None:
        return _chip("skipped", "skipped", "", "skips") if skipped else ""
    ratio = group.worst.ratio if group.worst else None
    figure = "" if ratio is None else f"<{TINY}" if 0 < ratio < TINY else short(ratio, 2)
    return {
        Status.FAILED: _chip("failed", "FAIL", figure, f"failed-{anchor}"),
        Status.BLOCKED: _chip("blocked", "blocked", "", f"errors-{anchor}"),
        Status.PASSED: _chip("passed", "pass", figure, f"errors-{anchor}"),
        Status.NOT_APPLICABLE: _chip("absent", "n/a", "", "absent"),
    }[group.status]


def _chip(style: str, word: str, figure: str, link: str) -> Markup:
    return Markup('<a class="chip {}" href="#{}"><b>{}</b> {}</a>').format(style, link, word, figure)


def failures(report: Report) -> list[Block]:
    """Per case its failed rows in the order of the report; then what was not judged because of them."""
    links = anchors(row.case for row in report.rows)
    found: list[Block] = []
    for case, group in grouped(ended(report, Status.FAILED), lambda row: row.case).items():
        found += [Heading(case, f"failed-{links[case]}"), *group.rows[:FIRST_FAILURES]]
        if rest := group.rows[FIRST_FAILURES:]:
            found.append(Fold(case, f"{count(len(rest), 'more failure')}", rest))
    if lines := blocked(report):
        found += [Heading("Not judged", "blocked"), Table((("blocked checks", ""),), [[line] for line in lines])]
    return found


def causes(ledgers: Sequence[Ledger]) -> list[Block]:
    """Per case its causes and kinds of quantities, and folded every quantity that differs."""
    found: list[Block] = []
    for ledger in ledgers:
        shown = [line for line in ledger.lines if line.differs]
        left = sum(line.left for line in shown)
        lines = Table(_named(LINES), difference_lines(ledger), marks=["failed" if x.left else "" for x in shown])
        fold = Fold(ledger.case, told(ledger), [lines], opened=bool(left), chip=f"{left} left" if left else "")
        tables = Table(_named(CAUSES), cause_lines(ledger)), Table(_named(KINDS), kind_lines(ledger))
        found += [Heading(ledger.case, f"causes-{len(found)}"), *tables, fold]
    return found


def _named(columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, "" if index else "name") for index, name in enumerate(columns))


def curves(report: Report) -> list[Block]:
    """Loss in the open, since it is what readers look for; every other quantity behind a fold."""
    found: list[Block] = []
    quantities = unique(curve.quantity for curve in report.curves)
    for quantity in sorted(quantities, key=lambda quantity: quantity != "loss"):
        mine = [curve for curve in report.curves if curve.quantity == quantity]
        cases = unique(curve.case for curve in mine)
        panels = Panels([_curve_panel([c for c in mine if c.case == case], report.baseline) for case in cases])
        fold = Fold("", f"{UNITS.get(quantity, quantity)} · {count(len(cases), 'case')}", [panels])
        found.append(panels if quantity == "loss" else fold)
    return found


def _curve_panel(found: list[Curve], baseline: str) -> Panel:
    ordered = sorted(found, key=lambda curve: curve.run != baseline)
    base, others = ordered[0], ordered[1:]
    styles = ["base", *(f"run{index % 4}" for index in range(len(others)))]
    lines = [Series(range(len(c.values)), c.values, style) for c, style in zip(ordered, styles, strict=True)]
    gaps = [relative_differences(base.values, curve.values) for curve in others]
    apart = [Series(range(len(gap)), gap.tolist(), style) for gap, style in zip(gaps, styles[1:], strict=True)]
    axes = [Axes(UNITS.get(base.quantity, "value"), lines)]
    if any(((gap > 0) & np.isfinite(gap)).any() for gap in gaps):
        axes.append(Axes("relative difference", apart, log=True, height=1.0))
    drawing = draw(f"{base.quantity} of {base.case}", X_LABEL, *axes)
    return Panel(
        base.case, drawing, [(c.run, s) for c, s in zip(ordered, styles, strict=True)], _remarks(ordered, gaps)
    )


def relative_differences(base: Sequence[float], other: Sequence[float]) -> NDArray[np.float64]:
    """|other - base| / |base| at every position both have; equal values differ by 0, whatever they are."""
    length = min(len(base), len(other))  # a remark names lengths that differ
    a, b = np.asarray(base[:length], dtype=float), np.asarray(other[:length], dtype=float)
    with np.errstate(all="ignore"):
        return np.where(a == b, 0.0, np.abs(b - a) / np.abs(a))


def _remarks(ordered: list[Curve], gaps: list[NDArray[np.float64]]) -> list[str]:
    base, others = ordered[0], ordered[1:]
    said = [_compared(base, curve, gap) for curve, gap in zip(others, gaps, strict=True)]
    for curve in ordered:
        where = np.flatnonzero(~np.isfinite(np.asarray(curve.values, dtype=float)))
        number = count(len(where), "value is", "values are")
        said.append(f"{curve.run}: {number} not finite, first at {where[0]}" if len(where) else "")
    return list(filter(None, said))


def _compared(base: Curve, curve: Curve, gap: NDArray[np.float64]) -> str:
    if len(base.values) != len(curve.values):
        return f"{curve.run} has {count(len(curve.values), 'value')}, {base.run} has {len(base.values)}"
    if not gap.any():
        return f"{curve.run}: exactly equal at every micro-batch ({count(len(gap))})"
    finite = gap[np.isfinite(gap)]
    return f"{curve.run}: at most {short(float(finite.max()))} apart, relative" if finite.size else ""


def errors(report: Report) -> list[Block]:
    """Every case with all its comparisons, the first that failed open."""
    links = anchors(row.case for row in report.rows)
    groups = grouped((row for row in report.rows if row.compared), lambda row: row.case)
    first = next((case for case, group in groups.items() if group.of(Status.FAILED)), None)
    return [_case_errors(case, f"errors-{links[case]}", group, case == first) for case, group in groups.items()]


def _case_errors(case: str, anchor: str, group: Group, opened: bool) -> Fold:
    rows = sorted(group.rows, key=severity, reverse=True)
    failed, rest = group.of(Status.FAILED), rows[FIRST_ROWS:]
    worst = short(group.worst.ratio if group.worst else None)
    summary = f"{count(len(rows), 'comparison')}, worst ratio {worst}"
    blocks: list[Block] = [_comparisons(rows[:FIRST_ROWS])]
    if rest:
        blocks.append(Fold("", count(len(rest), "more comparison"), [_comparisons(rest)]))
    return Fold(case, summary, blocks, anchor, opened, f"{count(failed)} failed" if failed else "")


def _comparisons(rows: list[Row]) -> Table:
    names = ("check", "run", "against", "quantity")
    columns = (
        ("tensor", "name"),
        *((name, "") for name in names),
        *((name, "number") for name in ("measured", "allowed", "ratio")),
        ("ended", ""),
    )
    lines = [
        [
            row.tensor,
            row.check,
            row.run,
            row.against.value,
            row.quantity,
            short(row.measured),
            short(row.allowed),
            _bar(row),
            row.status.value,
        ]
        for row in rows
    ]
    return Table(columns, lines, "comparisons", [row.status.value for row in rows])


def _bar(row: Row) -> Markup | str:
    """The ratio, and below it a bar from a ten-thousandth of the limit to ten thousand times; NaN fills it."""
    if row.ratio is None:
        return MISSING
    share = 100.0 if math.isnan(row.ratio) else 0.0
    if row.ratio > 0:
        share = 100 * (min(max(math.log10(min(row.ratio, 1e9)), -4), 4) + 4) / 8
    return Markup('{}<i class="bar"><i style="width:{}%"></i></i>').format(short(row.ratio), round(share))


FLOW = (("parameter", "name"), ("run", ""), ("state", ""), ("largest gradient", "number"), ("moved by", "number"))


def flows(report: Report) -> list[Block]:
    """Per case what every parameter received and how far it moved, what needs attention first."""
    cases = unique(flow.case for flow in report.gradient_flow)
    return [_flow(case, [f for f in report.gradient_flow if f.case == case], report.baseline) for case in cases]


def _flow(case: str, found: list[GradientFlow], baseline: str) -> Fold:
    order = {name: index for index, name in enumerate(unique(flow.parameter for flow in found))}
    expected = {(flow.parameter, flow_state(flow)) for flow in found if flow.run == baseline}
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for flow in sorted(found, key=lambda flow: order[flow.parameter]):
        state = _beside(flow, baseline, expected)
        alike.setdefault((flow.parameter, state, short(flow.grad_max), short(flow.moved)), []).append(flow.run)
    keys = sorted(alike, key=lambda key: key[1] not in ALARMS)
    alarms = unique(name for name, state, *_ in keys if state in ALARMS)
    frozen = unique(flow.parameter for flow in found if not flow.trainable)
    tail = f", {count(len(alarms))} suspicious" if alarms else ""
    summary = f"{count(len(order), 'parameter')}, {count(len(frozen))} frozen{tail}"
    lines = [[name, ", ".join(alike[key]), state, *sizes] for key in keys for name, state, *sizes in [key]]
    marks = ["failed" if state in ALARMS else "" for _, state, *_ in keys]
    return Fold(case, summary, [Table(FLOW, lines, "comparisons", marks)], opened=bool(alarms))


ALARMS = ("dead", "frozen but moved")


def flow_state(flow: GradientFlow) -> str:
    """``trains``, ``frozen``, ``dead`` (trainable without gradient or motion) or ``frozen but moved``."""
    if not flow.trainable:
        return ALARMS[1] if flow.moved else "frozen"
    dead = not flow.grad_max or math.isnan(flow.grad_max) or not flow.moved or math.isnan(flow.moved)
    return ALARMS[0] if dead else "trains"


def _beside(flow: GradientFlow, baseline: str, expected: set[tuple[str, str]]) -> str:
    """A parameter that is just as dead in the baseline is worth a word, not an alarm."""
    state = flow_state(flow)
    return f"{state}, as in {baseline}" if state in ALARMS and (flow.parameter, state) in expected else state


SPEED = (
    ("case", "name"),
    ("side", "name"),
    *((name, "number") for name in ("seconds per step", "tokens per second", "FLOPs per step", "speed-up")),
)


def speeds(found: Sequence[Speed]) -> list[Block]:
    """Two lines a measurement: the prototype's side and the port's."""
    lines = []
    for speed in found:
        low, high = map(short, speed.interval)
        lines.append([speed.case, speed.prototype, *_side(speed, speed.prototype_seconds, speed.prototype_flops), ""])
        ratio = f"{short(speed.ratio)} ({low} to {high})"
        lines.append([speed.case, speed.port, *_side(speed, speed.port_seconds, speed.port_flops), ratio])
    return [Table(SPEED, lines)] if lines else []


def _side(speed: Speed, seconds: Sequence[float], flops: int) -> list[str]:
    best = min(seconds, default=None)
    return [short(best), short(speed.tokens / best if best else None), scaled(flops)]


def environment(found: Mapping[str, Any]) -> list[Block]:
    """Mappings become panels of their own, everything else the first one."""
    plain = {key: value for key, value in found.items() if not isinstance(value, dict)}
    groups = {"this run": plain, **{str(key): value for key, value in found.items() if isinstance(value, dict)}}
    columns = (("", "soft"), ("", "name"))
    panels = [Panel(name, Table(columns, _flattened(group), "plain")) for name, group in groups.items() if group]
    return [Panels(panels)] if panels else []


def _flattened(mapping: dict[Any, Any], prefix: str = "") -> list[list[str]]:
    found: list[list[str]] = []
    for key, value in mapping.items():
        inner = isinstance(value, dict)
        found += _flattened(value, f"{prefix}{key}.") if inner else [[f"{prefix}{key}", _words(value)]]
    return found


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if value is None:
        return MISSING
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def absent(report: Report) -> list[Block]:
    """By reason, so that one reason for many cases is one line."""
    lines = not_applicable(report)
    return [Table((("reason", ""), ("checks", ""), ("runs", "name"), ("cases", "name")), lines)] if lines else []
