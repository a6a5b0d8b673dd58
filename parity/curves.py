"""Two curves, point by point: losses, rates, gradient norms, hits, and what else a trace has of each point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from parity.compare import compare_counts, compare_lines, compare_series, compare_value
from parity.evidence import Evidence
from parity.trace import Point
from parity.verdict import Row

Read = Callable[[Point], "float | None"]

SERIES: dict[str, tuple[str, Read]] = {
    "lr_used": ("lr", lambda point: point.lr_used),
    "lr_after": ("lr", lambda point: point.lr_after),
    "loss": ("curve", lambda point: point.loss),
    "grad_norm": ("grad_norm", lambda point: point.grad_norm),
}
WITHOUT_ROUNDING = ("lr_used", "lr_after")


def curve_rows(evidence: Evidence) -> list[Row]:
    """One row a series. In half precision only what no rounding reaches: the rates."""
    names = WITHOUT_ROUNDING if evidence.in_half else tuple(SERIES)
    rows = [_series(evidence, "curve", name, *SERIES[name]) for name in names if _any(evidence, SERIES[name][1])]
    further = {} if evidence.in_half else _further([*evidence.expected.curve, *evidence.found.curve])
    return rows + [_series(evidence, "curve", name, "curve", read) for name, read in further.items()]


def hits_rows(evidence: Evidence) -> list[Row]:
    """Rows in the loss; hits among the first 1, 2, ... choices, near ties aside; and the printed lines."""
    subject, curves = evidence.subject("hits"), (evidence.expected.curve, evidence.found.curve)
    rows = [_series(evidence, "hits", "rows", "rows", lambda point: point.rows)]
    if evidence.in_half:
        return rows
    places = max((len(point.top) for point in chain(*curves)), default=0)
    for place in range(places):
        counts = [[point.top[place] for point in curve if place < len(point.top)] for curve in curves]
        rows.append(compare_counts(subject, "hits", f"top_{place + 1}", counts[0], counts[1], _ties(evidence, place)))
    counts = [[point.correct for point in curve] for curve in curves]
    rows.append(compare_counts(subject, "hits", "hits", counts[0], counts[1], _ties(evidence, 0)))
    lines = evidence.expected.prints, evidence.found.prints
    return rows + ([compare_lines(subject, "prints", *lines, evidence.tolerance("prints"))] if any(lines) else [])


def _ties(evidence: Evidence, place: int) -> list[int]:
    """Of either side, the larger count; none where neither side counted."""
    pairs = zip(evidence.expected.curve, evidence.found.curve)
    return [max(point.ties[place] if place < len(point.ties) else 0 for point in pair) for pair in pairs]


def has_hits(evidence: Evidence) -> bool:
    """Does either side count rows or print lines?"""
    points = chain(evidence.expected.curve, evidence.found.curve)
    return any(point.rows for point in points) or bool(evidence.expected.prints or evidence.found.prints)


def _further(points: Sequence[Point]) -> dict[str, Read]:
    """What algorithms log besides, and the losses of every step of an unrolled model."""
    read: dict[str, Read] = {}
    for name in sorted({name for point in points for name in point.logged}):
        read[name] = partial(_logged, name)
    if all(point.step_losses for point in points):
        for number in range(max((len(point.step_losses) for point in points), default=0)):
            read[f"loss of step {number}"] = partial(_step, number)
    return read


def _logged(name: str, point: Point) -> float | None:
    return point.logged.get(name)


def _step(number: int, point: Point) -> float | None:
    return point.step_losses[number] if number < len(point.step_losses) else None


def _any(evidence: Evidence, read: Read) -> bool:
    return any(read(point) is not None for point in chain(evidence.expected.curve, evidence.found.curve))


def _series(evidence: Evidence, check: str, name: str, quantity: str, read: Read) -> Row:
    """Points without a value have none on either side: micro-batches that only accumulate have no gradient norm."""
    subject = evidence.subject(check)
    series = [[read(point) for point in trace.curve] for trace in evidence.traces]
    present = [[value is not None for value in side] for side in series]
    if present[0] != present[1]:
        return compare_value(subject, quantity, name, f"{sum(present[0])} points", f"{sum(present[1])} points")
    mine, theirs = ([value for value in side if value is not None] for side in series)
    return compare_series(subject, quantity, name, mine, theirs, evidence.tolerance(quantity))
