"""Two curves, point by point: losses, rates, gradient norms, and what else a trace has of each point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from parity.compare import Subject, compare_lines, compare_series, compare_value
from parity.kit.tolerances import Tolerances
from parity.trace import Point, Trace
from parity.verdict import Row

Series = list["float | None"]

READ: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    "loss": ("curve", lambda point: point.loss),
    "grad_norm": ("curve", lambda point: point.grad_norm),
    "lr_used": ("lr", lambda point: point.lr_used),
    "lr_after": ("lr", lambda point: point.lr_after),
    "rows": ("rows", lambda point: point.rows),
    "hits": ("hits", lambda point: point.correct),
}
ALWAYS = ("loss", "lr_used", "lr_after")
"""The others are compared where one side has any."""


def curve_rows(subject: Subject, expected: Trace, found: Trace, table: Tolerances) -> list[Row]:
    """One row a series, and one for the printed lines."""
    rows = []
    for name, (quantity, read) in READ.items():
        mine, theirs = ([read(point) for point in side.curve] for side in (expected, found))
        if name in ALWAYS or any(mine) or any(theirs):
            rows.append(_series(subject, quantity, name, mine, theirs, table))
    for name, mine, theirs in _further(expected.curve, found.curve):
        rows.append(_series(subject, "curve", name, mine, theirs, table))
    if expected.prints or found.prints:
        rows.append(compare_lines(subject, "prints", expected.prints, found.prints, table["prints"]))
    return rows


def _further(expected: Sequence[Point], found: Sequence[Point]) -> list[tuple[str, Series, Series]]:
    """What algorithms log besides, and the losses of every step of an unrolled model."""
    read: dict[str, Callable[[Point], float | None]] = {}
    for name in sorted({name for point in (*expected, *found) for name in point.logged}):
        read[name] = partial(_logged, name)
    for number in range(max((len(point.step_losses) for point in (*expected, *found)), default=0)):
        read[f"loss of step {number}"] = partial(_step, number)
    return [(name, [one(point) for point in expected], [one(point) for point in found]) for name, one in read.items()]


def _logged(name: str, point: Point) -> float | None:
    return point.logged.get(name)


def _step(number: int, point: Point) -> float | None:
    return point.step_losses[number] if number < len(point.step_losses) else None


def _series(subject: Subject, quantity: str, name: str, expected: Series, found: Series, table: Tolerances) -> Row:
    """Points without a value have none on either side: micro-batches that only accumulate have no gradient norm."""
    present = [[value is not None for value in side] for side in (expected, found)]
    if present[0] != present[1]:
        return compare_value(subject, quantity, f"points with {name}", sum(present[0]), sum(present[1]))
    mine, theirs = ([value for value in side if value is not None] for side in (expected, found))
    return compare_series(subject, quantity, name, mine, theirs, table[quantity])
