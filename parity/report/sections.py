"""What the plainer sections of the page show, worked out before the template sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from parity.report.matrix import anchors
from parity.report.numbers import MISSING, count, listing, short
from parity.report.summary import Group, blockers, failed, grouped, margin, unique, verdict_line, worst_first
from parity.report.svg import Bar, bar_chart
from parity.verdict import Report, Row, Speed, Status

MOST_BARS = 12


@dataclass(frozen=True)
class Verdict:
    """The top of the page: one word, and sentences for someone who has never seen such a report."""

    passed: bool
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class CaseErrors:
    """Every comparison of one case, the worst first, and a chart of the worst few."""

    case: str
    anchor: str
    rows: tuple[Row, ...]
    chart: Markup | None
    charted: int
    failed: int
    worst: str
    opened: bool


def verdict(report: Report) -> Verdict:
    """What was compared with what, how it ended, and how near it came."""
    if not report.rows:
        remedy = ["The skipped checks at the end say what each of them needs."] if report.skips else []
        return Verdict(False, "FAIL: no comparisons", ("Nothing was compared, so nothing was shown.", *remedy))
    runs, cases = unique(row.run for row in report.rows), unique(row.case for row in report.rows)
    compared = (
        f"Compared: {listing(runs)} with {report.baseline}, on {count(len(cases), 'case')}. Each comparison takes one "
        "tensor or number that both sides computed, and asks whether they differ by no more than a fixed tolerance."
    )
    headline = verdict_line(report).split(";")[0]
    return Verdict(report.passed, headline, (compared, *_first_failure(report), *_worst_sentences(report)))


def _first_failure(report: Report) -> list[str]:
    first = next(iter(failed(report)), None)
    return [f"Start with check {first.check} of {first.case} ({first.run}), the first that failed."] if first else []


def _worst_sentences(report: Report) -> list[str]:
    worst = Group(tuple(report.rows)).worst
    ratio = margin(worst) if worst else None
    place = f"{worst.tensor or worst.quantity} in check {worst.check} of {worst.case} ({worst.run})" if worst else ""
    if ratio is None:
        return [f"The worst comparison is {place}."] if worst else []
    if math.isnan(ratio):
        return [f"The worst error is not a number: {place}."]
    if ratio == 0:
        return ["Every measured error is exactly 0."]
    if ratio <= 1 and report.passed:
        return [f"The closest call used {short(100 * ratio)} % of what is allowed: {place}."]
    return [f"The worst error is {short(ratio)} times what is allowed: {place}."]


def failures(report: Report) -> list[tuple[str, str, list[Row]]]:
    """Per case its name, its anchor and its failed rows in the order of the report."""
    links = anchors(row.case for row in report.rows)
    groups = grouped(failed(report), lambda row: row.case)
    return [(case, links[case], list(group.rows)) for case, group in groups.items()]


def blocked(report: Report) -> list[str]:
    """One line per check whose rows could not be judged."""
    causes = blockers(report)
    rows = [row for row in report.rows if row.status is Status.BLOCKED]
    return [
        f"{check}: {count(len(group.rows), 'comparison')} in {listing(group.cases)}, blocked by "
        + listing(unique(causes.get((row.case, row.run), "an earlier check") for row in group.rows))
        for check, group in grouped(rows, lambda row: row.check).items()
    ]


def errors(report: Report) -> list[CaseErrors]:
    """Every case with all its comparisons."""
    links = anchors(row.case for row in report.rows)
    groups = grouped(report.rows, lambda row: row.case)
    first = next((case for case, group in groups.items() if group.of(Status.FAILED)), None)
    return [_case_errors(case, links[case], group, case == first) for case, group in groups.items()]


def _case_errors(case: str, anchor: str, group: Group, opened: bool) -> CaseErrors:
    rows = worst_first(group.rows)
    drawn = [row for row in rows if margin(row) is not None and row.status is not Status.BLOCKED][:MOST_BARS]
    bars = [Bar(_bar_label(row), margin(row), row.status.value) for row in drawn]
    chart = Markup(bar_chart(bars, f"measured / allowed, {case}, worst first")) if bars else None
    worst = short(margin(group.worst)) if group.worst else short(None)
    return CaseErrors(case, anchor, tuple(rows), chart, len(bars), group.of(Status.FAILED), worst, opened)


def _bar_label(row: Row) -> str:
    return " · ".join(part for part in (row.check, row.run, row.tensor or row.quantity) if part)


def tokens_per_second(speed: Speed, seconds: tuple[float, ...]) -> float:
    """Tokens per second of the best round; NaN when nothing was timed."""
    best = min(seconds, default=0.0)
    return speed.tokens / best if best > 0 else math.nan


def environment_groups(environment: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Mappings become groups of their own, everything else the first group."""
    plain = [(str(key), _words(value)) for key, value in environment.items() if not isinstance(value, dict)]
    nested = [(str(key), _flattened(value)) for key, value in environment.items() if isinstance(value, dict)]
    return [group for group in (("this run", plain), *nested) if group[1]]


def _flattened(mapping: dict[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in mapping.items():
        inner = isinstance(value, dict)
        pairs += _flattened(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", _words(value))]
    return pairs


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if value is None:
        return MISSING
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
