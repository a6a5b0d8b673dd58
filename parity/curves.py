"""Two curves, point by point: losses, rates, gradient norms, hits, and what else a trace has of each point."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from parity.compare import Subject, compare_series, compare_value
from parity.evidence import Evidence
from parity.tolerances import Tolerance
from parity.trace import Point
from parity.verdict import Row

OWN = {"lr_used": "lr", "lr_after": "lr", "loss": "curve", "grad_norm": "grad_norm"}
"""Numbers that every point has or lacks, each with its quantity of the tolerance table; others are like a loss."""

WITHOUT_ROUNDING = ("lr_used", "lr_after")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def curve_rows(evidence: Evidence) -> list[Row]:
    """One row a series. In half precision only what no rounding reaches: the rates.

    Losses of the steps of an unrolled model are asked for where the original has any.
    """
    unrolled = any(point.step_losses for point in evidence.expected.curve)
    sides = [[numbers_of(point, unrolled) for point in trace.curve] for trace in evidence.traces]
    names = dict.fromkeys(name for point in chain(*sides) for name in point)
    chosen = [name for name in names if name in WITHOUT_ROUNDING or not evidence.in_half]
    subject, rows = evidence.subject("curve"), []
    for name in chosen:
        quantity, values = OWN.get(name, "curve"), [[point.get(name) for point in side] for side in sides]
        rows.append(_series(subject, quantity, name, values, evidence.tolerance(quantity)))
    return rows


def numbers_of(point: Point, unrolled: bool) -> dict[str, float]:
    """What a point says, what an algorithm logs besides, and the losses of every step of an unrolled model."""
    steps = {f"loss of step {n}": loss for n, loss in enumerate(point.step_losses) if unrolled}
    own = {name: getattr(point, name) for name in OWN}
    return {name: value for name, value in {**own, **point.logged, **steps}.items() if value is not None}


def _series(subject: Subject, quantity: str, name: str, sides: Sequence[Sequence[Any]], allowed: Tolerance) -> Row:
    """Points without a value have none on either side: micro-batches that only accumulate have no gradient norm."""
    present = [[place for place, value in enumerate(side) if value is not None] for side in sides]
    if present[0] != present[1]:
        apart = min({*present[0]} ^ {*present[1]})
        said = [f"{len(places)} points, {'a' if apart in places else 'no'} value at ({apart},)" for places in present]
        return compare_value(subject, quantity, name, *said)
    mine, theirs = ([0.0 if value is None else value for value in side] for side in sides)
    return compare_series(subject, quantity, name, mine, theirs, allowed)


def has_hits(evidence: Evidence) -> bool:
    """Does either side count rows or print lines?"""
    return any(any(point.rows for point in trace.curve) or trace.prints for trace in evidence.traces)


def hits_rows(evidence: Evidence) -> list[Row]:
    """Rows in the loss; hits among the first 1, 2, ... choices, near ties aside; and the printed lines."""
    subject, curves = evidence.subject("hits"), (evidence.expected.curve, evidence.found.curve)
    counted = [[point.rows for point in curve] for curve in curves]
    rows = [_series(subject, "rows", "rows", counted, evidence.tolerance("rows"))]
    if evidence.in_half:
        return rows
    for place in range(max((len(point.top) for point in chain(*curves)), default=0)):
        counts = [[point.top[place] for point in curve if place < len(point.top)] for curve in curves]
        rows.append(_counts(subject, f"top_{place + 1}", counts[0], counts[1], _ties(evidence, place)))
    counts = [[point.correct for point in curve] for curve in curves]
    rows.append(_counts(subject, "hits", counts[0], counts[1], _ties(evidence, 0)))
    lines = evidence.expected.prints, evidence.found.prints
    return rows + ([_lines(subject, *lines, evidence.tolerance("prints"))] if any(lines) else [])


def _ties(evidence: Evidence, place: int) -> list[int]:
    """Of either side, the larger count; none where neither side counted."""
    pairs = zip(evidence.expected.curve, evidence.found.curve)
    return [max(point.ties[place] if place < len(point.ties) else 0 for point in pair) for pair in pairs]


def _counts(subject: Subject, name: str, expected: Sequence[int], found: Sequence[int], ties: Sequence[int]) -> Row:
    """Counts that must be equal but for those that near ties decide; measured is what lies beyond these."""
    if len(expected) != len(found) or not expected:
        detail = f"{len(found)} points, expected {len(expected)}" if expected or found else "nothing compared"
        return subject.row("hits", name, None, 0.0, False, detail)
    gaps = [abs(mine - theirs) for mine, theirs in zip(expected, found)]
    beyond = [max(0, gap - allowed) for gap, allowed in zip(gaps, ties)]
    worst = beyond.index(max(beyond))
    detail = f"at ({worst},): expected {expected[worst]}, found {found[worst]}, {ties[worst]} near ties"
    if not any(beyond) and any(gaps):
        detail = f"{sum(gaps)} of {sum(expected)} fall the other way, {sum(ties)} are near ties"
    return subject.row("hits", name, float(sum(beyond)), 0.0, not any(beyond), detail)


def _lines(subject: Subject, expected: Sequence[str], found: Sequence[str], tolerance: Tolerance) -> Row:
    """The same printed lines; the numbers in them may be rounded either way in the last digit."""
    words = [[NUMBER.sub("#", line) for line in side] for side in (expected, found)]
    if words[0] != words[1]:
        return compare_value(subject, "prints", "lines", list(expected), list(found))
    mine, theirs = ([float(number) for line in side for number in NUMBER.findall(line)] for side in (expected, found))
    return compare_series(subject, "prints", "numbers", mine, theirs, tolerance)
