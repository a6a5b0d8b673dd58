"""The curves of a report as charts: both sides overlaid, and below them how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from parity.report.numbers import count, short
from parity.report.summary import unique
from parity.report.svg import Series, line_chart
from parity.verdict import Curve, Report

UNITS = {
    "loss": "loss (nats)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "accuracy": "accuracy",
}
X_LABEL = "micro-batch, counted from 0"


@dataclass(frozen=True)
class CurvePanel:
    """One case and quantity: the overlaid curves, their relative difference, and what to say about them."""

    case: str
    quantity: str
    legend: tuple[tuple[str, str], ...]
    overlay: Markup
    difference: Markup | None
    remarks: tuple[str, ...]


def curve_panels(report: Report, quantity: str) -> list[CurvePanel]:
    """One panel per case that has curves of this quantity."""
    curves = [curve for curve in report.curves if curve.quantity == quantity]
    cases = unique(curve.case for curve in curves)
    return [_panel([curve for curve in curves if curve.case == case], report.baseline) for case in cases]


def relative_differences(base: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    """|other - base| / |base| at every position both have; equal values differ by 0, whatever they are."""
    return tuple(_relative(a, b) for a, b in zip(base, other, strict=False))  # remarks name lengths that differ


def _relative(base: float, other: float) -> float:
    if base == other:
        return 0.0
    return abs(other - base) / abs(base) if base else math.inf


def _panel(curves: list[Curve], baseline: str) -> CurvePanel:
    ordered = sorted(curves, key=lambda curve: curve.run != baseline)
    base, others = ordered[0], ordered[1:]
    title = f"{base.quantity} of {base.case}"
    styles = ["base", *(f"run{i % 4}" for i in range(len(others)))]
    lines = [_series(curve.run, curve.values, style) for curve, style in zip(ordered, styles, strict=True)]
    apart = [
        _series(curve.run, relative_differences(base.values, curve.values), style)
        for curve, style in zip(others, styles[1:], strict=True)
    ]
    overlay = Markup(line_chart(lines, title, X_LABEL, UNITS.get(base.quantity, base.quantity)))
    legend = tuple((curve.run, style) for curve, style in zip(ordered, styles, strict=True))
    return CurvePanel(base.case, base.quantity, legend, overlay, _difference(apart, title, base.run), _remarks(ordered))


def _series(name: str, values: Sequence[float], style: str) -> Series:
    return Series(name, tuple((float(index), value) for index, value in enumerate(values)), style)


def _difference(apart: list[Series], title: str, base: str) -> Markup | None:
    """None when a log axis has nothing to show: no other run, equal everywhere, or nothing finite."""
    if not any(y > 0 and math.isfinite(y) for series in apart for _, y in series.points):
        return None
    label = f"relative difference from {base}"
    return Markup(line_chart(apart, f"{title}, {label}", X_LABEL, label, log=True, height=150))


def _remarks(ordered: list[Curve]) -> tuple[str, ...]:
    base, others = ordered[0], ordered[1:]
    said = [remark for curve in others if (remark := _compared(base, curve))]
    return (*said, *(remark for curve in ordered if (remark := _not_finite(curve))))


def _compared(base: Curve, curve: Curve) -> str:
    if len(base.values) != len(curve.values):
        return f"{curve.run} has {count(len(curve.values), 'value')}, {base.run} has {len(base.values)}"
    apart = relative_differences(base.values, curve.values)
    if not any(apart):
        return f"{curve.run}: exactly equal at every micro-batch ({count(len(apart))})"
    finite = [value for value in apart if math.isfinite(value)]
    return f"{curve.run}: at most {short(max(finite))} apart, relative" if finite else ""


def _not_finite(curve: Curve) -> str:
    where = [index for index, value in enumerate(curve.values) if not math.isfinite(value)]
    if not where:
        return ""
    return f"{curve.run}: {count(len(where), 'value is', 'values are')} not finite, first at {where[0]}"
