"""The whole run: loss, rate, gradient norm and hits at every micro-batch, the printed lines, the final parameters."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

from parity.compare import Subject, compare_lines, compare_series
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.checks.recorded.determined import compare_parameters
from parity.trace import Point
from parity.verdict import Row

SERIES: dict[str, tuple[str, Callable[[Point], float]]] = {
    "lr_used": ("lr", lambda point: point.lr_used),
    "lr_after": ("lr", lambda point: point.lr_after),
    "loss": ("loss", lambda point: point.loss),
    "grad_norm": ("grad_norm", lambda point: float("nan") if point.grad_norm is None else point.grad_norm),
    "hits": ("hits", lambda point: point.correct),
    "rows": ("rows", lambda point: point.rows),
}
WITHOUT_ROUNDING = ("lr_used", "lr_after")


def check_curve(evidence: Evidence) -> list[Row]:
    """Rate, loss and gradient norm point by point, and the final parameters where the recording kept them.

    In bfloat16 only what no rounding reaches: the rates. Losses are judged over seeds there.
    """
    subject = evidence.subject("curve")
    if evidence.is_bf16:
        return [_series(evidence, subject, name) for name in WITHOUT_ROUNDING]
    rows = [_series(evidence, subject, name) for name in ("lr_used", "lr_after", "loss", "grad_norm")]
    return [*rows, *_logged(evidence, subject), *_final(evidence, subject)]


def check_hits(evidence: Evidence) -> list[Row]:
    """Rows in the loss, hits among the first 1, 2, 3 choices, and the printed lines that sum them up."""
    subject = evidence.subject("hits")
    rows = [_series(evidence, subject, "rows")]
    if evidence.is_bf16:
        return rows
    for place in range(len(evidence.expected.curve[0].top) if evidence.expected.curve else 0):
        expected, found = ([float(p.top[place]) for p in side.curve] for side in (evidence.expected, evidence.found))
        rows.append(compare_series(subject, "hits", f"top_{place + 1}", expected, found, evidence.tolerance("hits")))
    rows.append(_series(evidence, subject, "hits"))
    prints = evidence.expected.prints, evidence.found.prints
    return [*rows, compare_lines(subject, "prints", *prints, evidence.tolerance("prints"))]


def _series(evidence: Evidence, subject: Subject, name: str) -> Row:
    quantity, read = SERIES[name]
    expected, found = ([float(read(point)) for point in side.curve] for side in (evidence.expected, evidence.found))
    return compare_series(subject, quantity, name, expected, found, evidence.tolerance(quantity))


def _logged(evidence: Evidence, subject: Subject) -> list[Row]:
    """The metrics an algorithm logs besides, and no others; a micro-batch without rows in the loss logs none."""
    curves = evidence.expected.curve, evidence.found.curve
    tolerance, rows = evidence.tolerance("loss"), []
    for name in sorted({name for side in curves for point in side for name in point.logged}):
        expected, found = ({i: p.logged[name] for i, p in enumerate(side) if name in p.logged} for side in curves)
        steps = sorted({*expected, *found})
        first, second = ([side.get(step, nan) for step in steps] for side in (expected, found))
        rows.append(compare_series(subject, "loss", name, first, second, tolerance))
    return rows


def _final(evidence: Evidence, subject: Subject) -> list[Row]:
    """Only where the recording kept the final parameters."""
    expected, found = (trace.group("final.") for trace in (evidence.expected, evidence.found))
    if not expected:
        return []
    found = {name: value for name, value in found.items() if name in expected or name in evidence.found.trained}
    return compare_parameters(evidence, subject, "final", expected, found)
