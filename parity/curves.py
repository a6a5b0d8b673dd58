"""Two curves, point by point: losses, rates, gradient norms, hits, and what else a trace has of each point."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from parity.allowed import numbers_of
from parity.compare import RowKey, bits_of, compare_grown, compare_series, compare_value
from parity.tolerances import Tolerance
from parity.trace import Point
from parity.trace_pair import TracePair
from parity.verdict import Row, Status

RATES = ("lr_used", "lr_after")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def curve_rows(evidence: TracePair) -> list[Row]:
    """One row a series: rates, which no rounding reaches, and all numbers of the points under bounds that grow.

    Losses of the steps of an unrolled model are asked for where the original has any.
    """
    subject, curves = evidence.subject("curve"), (evidence.expected.curve, evidence.found.curve)
    rates = [[[getattr(point, name) for point in curve] for curve in curves] for name in RATES]
    rows = [_series(subject, "lr", name, sides, evidence.tolerance("lr")) for name, sides in zip(RATES, rates)]
    if any(map(set_by_hand, curves)):
        rows[1:] = [subject.silent("lr", RATES[1], None, None, "a side sets its rate by hand as a step begins")]
    unrolled = any(point.step_losses for point in curves[0])
    sides = [[numbers_of(point, unrolled) for point in curve] for curve in curves]
    for name in dict.fromkeys(name for point in chain(*sides) for name in point):
        quantity = "grad_norm" if name == "grad_norm" else "curve"
        values = [[point.get(name) for point in side] for side in sides]
        count = len(_places(values[0]))
        if quantity in evidence.own or not count or _places(values[0]) != _places(values[1]):
            rows.append(_series(subject, quantity, name, values, evidence.tolerance(quantity)))
            continue
        bounds, last = evidence.grown(quantity, name, count)
        present = [[value for value in side if value is not None] for side in values]
        rows.append(compare_grown(subject, quantity, name, present, bounds, last))
    return rows


def set_by_hand(curve: Sequence[Point]) -> bool:
    """Do rates change from step to step, though no step leaves another than it took?"""
    kept = all(point.lr_after == point.lr_used for point in curve)
    return kept and any(before.lr_used != after.lr_used for before, after in pairwise(curve))


def _places(side: Sequence[Any]) -> list[int]:
    return [place for place, value in enumerate(side) if value is not None]


def _series(subject: RowKey, quantity: str, name: str, sides: Sequence[Sequence[Any]], allowed: Tolerance) -> Row:
    """Points without a value have none on either side: micro-batches that only accumulate have no gradient norm."""
    present = [_places(side) for side in sides]
    if present[0] != present[1]:
        apart = min({*present[0]} ^ {*present[1]})
        said = [f"{len(places)} points, {'a' if apart in places else 'no'} value at ({apart},)" for places in present]
        return compare_value(subject, quantity, name, *said)
    mine, theirs = ([0.0 if value is None else value for value in side] for side in sides)
    return compare_series(subject, quantity, name, mine, theirs, allowed)


def has_hits(evidence: TracePair) -> bool:
    """Does either side count rows or print lines?"""
    return any(any(point.rows for point in trace.curve) or trace.prints for trace in evidence.traces)


def hits_rows(evidence: TracePair) -> list[Row]:
    """Rows in the loss; hits among the first 1, 2, ... choices, near ties aside; and the printed lines."""
    subject, curves = evidence.subject("hits"), (evidence.expected.curve, evidence.found.curve)
    counted = [[point.rows for point in curve] for curve in curves]
    rows = [_series(subject, "rows", "rows", counted, evidence.tolerance("rows"))]
    for place in range(max((len(point.top) for point in chain(*curves)), default=0)):
        counts = [[point.top[place] for point in curve if place < len(point.top)] for curve in curves]
        rows.append(_counts(subject, f"top_{place + 1}", counts[0], counts[1], _ties(evidence, place)))
    first = rows[1].bits if len(rows) > 1 else ""
    counts = [[point.correct for point in curve] for curve in curves]
    hits = _counts(subject, "hits", counts[0], counts[1], _ties(evidence, 0))
    rows.append(hits.uncounted(Status.REPEATED) if hits.bits == first else hits)  # the first of the first choices
    lines = evidence.expected.prints, evidence.found.prints
    return rows + ([_lines(evidence, *lines)] if any(lines) else [])


def _ties(evidence: TracePair, place: int) -> list[int]:
    """Of either side, the larger count; none where neither side counted."""
    pairs = zip(evidence.expected.curve, evidence.found.curve)
    return [max(point.ties[place] if place < len(point.ties) else 0 for point in pair) for pair in pairs]


def _counts(subject: RowKey, name: str, expected: Sequence[int], found: Sequence[int], ties: Sequence[int]) -> Row:
    """Counts that must be equal but for those that near ties decide; measured is what lies beyond these."""
    if len(expected) != len(found) or not expected:
        detail = f"{len(found)} points, expected {len(expected)}" if expected or found else "nothing compared"
        return subject.failed("hits", name, detail, 0.0)
    gaps = [abs(mine - theirs) for mine, theirs in zip(expected, found)]
    beyond = [max(0, gap - allowed) for gap, allowed in zip(gaps, ties)]
    worst = beyond.index(max(beyond))
    detail = f"at ({worst},): expected {expected[worst]}, found {found[worst]}, {ties[worst]} near ties"
    if not any(beyond) and any(gaps):
        detail = f"{sum(gaps)} of {sum(expected)} fall the other way, {sum(ties)} are near ties"
    if not any(beyond) and 2 * sum(ties) >= max(1, sum(expected)):
        return subject.silent("hits", name, 0.0, 0.0, f"near ties decide {sum(ties)} of {sum(expected)}")
    row = subject.row("hits", name, float(sum(beyond)), 0.0, not any(beyond), detail)
    return replace(row, bits=bits_of(list(expected), list(found)))


def _lines(evidence: TracePair, expected: Sequence[str], found: Sequence[str]) -> Row:
    """The same printed lines: each number within a unit and a half of its last digit, and what rounding does to a loss.

    A percentage, which counts hits, besides within what near ties decide.
    """
    subject = evidence.subject("hits")
    words = [[NUMBER.sub("#", line) for line in side] for side in (expected, found)]
    if words[0] != words[1]:
        return compare_value(subject, "prints", "lines", list(expected), list(found))
    bounds, _ = evidence.grown("curve", "loss", max(1, len(evidence.expected.curve)))
    ties = [tie / point.rows for point, tie in zip(evidence.expected.curve, _ties(evidence, 0)) if point.rows]
    sides = [
        [(n, line[n.end() : n.end() + 1]) for line in side for n in NUMBER.finditer(line)] for side in (expected, found)
    ]
    worst = (0.0, "")
    for (mine, unit), (theirs, _) in zip(*sides):
        last = 10.0 ** -len(mine[0].partition(".")[2]) if "." in mine[0] else 0.0
        allowed = 1.5 * last + (
            100 * max(ties, default=0.0) if unit == "%" else bounds[-1] * float(mine[0]) * bool(last)
        )
        gap = abs(float(mine[0]) - float(theirs[0]))
        ratio = gap / allowed if allowed else math.inf if gap else 0.0
        worst = max(worst, (ratio, f"expected {mine[0]}, found {theirs[0]}, allowed {allowed:.3g}"))
    return subject.row("prints", "numbers", worst[0], 1.0, worst[0] <= 1.0, worst[1])
