"""Small charts as SVG text: lines and bars. Colours come from the page's style sheet through the class names.

Charts are drawn 400 units wide so that their text stays readable on a phone; the page scales them up or sets them
side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from parity.report.axis import Axis, linear_axis, log_axis, marked_log_axis
from parity.report.numbers import short

WIDTH = 400
CHARACTER = 6.7
MOST_POINTS = 800
BAR_END = WIDTH - 62
BAR_ROW = 34

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: its name, its points and the class that colours it."""

    name: str
    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True)
class Bar:
    """One bar: what it stands for, its length, and the class that colours it."""

    label: str
    value: float | None
    style: str


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    height: int = 220,
    log_x: bool = False,
) -> str:
    """Lines over a counting x axis; values that are not finite, or not positive on a log axis, leave a gap.

    With ``log_x`` the x axis is logarithmic too, with ticks at the points.
    """
    y_axis = (log_axis if log else linear_axis)([y for line in series for _, y in line.points], height - 34, 28)
    left = 14 + CHARACTER * max((len(label) for _, label in y_axis.ticks()), default=1)
    x_axis = _x_axis([x for line in series for x, _ in line.points], left, log_x)
    parts = [_y_grid(y_axis, left), _x_ticks(x_axis, height - 34)]
    parts += [_text(2, 14, y_label, "axis"), _text(WIDTH - 12, height - 3, x_label, "axis", "end")]
    parts += [_line(line, x_axis, y_axis) for line in series]
    if not any(y_axis.place(y) is not None for line in series for _, y in line.points):
        parts = [_text(2, 14, y_label, "axis"), _text(WIDTH / 2, height / 2, "no finite values", "tick", "middle")]
    return _frame(title, height, parts)


def bar_chart(bars: Sequence[Bar], title: str, limit: float = 1.0) -> str:
    """Horizontal bars on a log axis with a mark at ``limit``; each label has a line of its own above its bar.

    The axis reaches from a ten-thousandth to a million times the limit at most, so that one absurd value does not
    flatten the rest.
    """
    shown = [min(max(bar.value, 1e-4 * limit), 1e6 * limit) for bar in bars if bar.value and math.isfinite(bar.value)]
    axis = log_axis([limit, 10 * limit, *shown], 4, BAR_END)
    x = axis.place(limit) or 4.0
    ticks = [_text(pixel, 12, label, "tick", "middle") for pixel, label in _apart(axis, x)]
    ticks.append(_text(max(x, 26), 12, f"limit {limit:g}", "tick strong", "middle"))
    rows = [_bar(bar, axis, x, 22 + BAR_ROW * index) for index, bar in enumerate(bars)]
    return _frame(title, 26 + BAR_ROW * len(bars), [*ticks, *rows])


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """About ``most`` points: of each stretch the lowest, the highest and one that is not finite."""
    if len(points) <= most:
        return list(points)
    stretch = -(-2 * len(points) // most)
    return [kept for start in range(0, len(points), stretch) for kept in _extremes(points[start : start + stretch])]


def _extremes(part: Sequence[Point]) -> list[Point]:
    finite = [point for point in part if math.isfinite(point[1])]
    gap = next((point for point in part if not math.isfinite(point[1])), None)
    ends = [min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])] if finite else []
    return sorted({*ends, *([gap] if gap else [])}, key=lambda p: p[0])


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    runs = _unbroken([(x_axis.place(x), y_axis.place(y)) for x, y in thinned(series.points)])
    drawn = [_stroke(run, series.style) for run in runs]
    return f"<g><title>{escape(series.name)}</title>{''.join(drawn)}</g>"


def _unbroken(points: Sequence[tuple[float | None, float | None]]) -> list[list[Point]]:
    """The stretches between points that have no place."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if x is None or y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _stroke(run: list[Point], style: str) -> str:
    """A line, or a dot when there is a single point, which a line would not show."""
    if len(run) == 1:
        return f'<circle class="dot {style}" cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="3.5"/>'
    return f'<polyline class="line {style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in run)}"/>'


def _bar(bar: Bar, axis: Axis, limit: float, top: float) -> str:
    """Its label, its track with the bar and the limit's mark, its value; NaN and infinity fill the track."""
    end = axis.place(bar.value) if bar.value else 4.0
    length = min(max(BAR_END if end is None else end, 4.0), BAR_END) - 4
    mark = f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{top + 13:.1f}" y2="{top + 27:.1f}"/>'
    label = _text(4, top + 10, _fitted(bar.label), "label", title=bar.label)
    drawn = _rect("track", BAR_END - 4, top) + (_rect(f"bar {bar.style}", length, top) if length > 0 else "")
    return label + drawn + mark + _text(WIDTH - 2, top + 24, short(bar.value), "value", "end")


def _rect(style: str, length: float, top: float) -> str:
    return f'<rect class="{style}" x="4" y="{top + 15:.1f}" width="{length:.1f}" height="10" rx="2"/>'


def _fitted(label: str, most: int = 56) -> str:
    """A long label loses its middle: tensor names differ at both ends."""
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-(most // 2 - 1) :]}"


def _apart(axis: Axis, x: float) -> list[tuple[float, str]]:
    """The ticks that keep clear of the label at ``x`` and of the left edge."""
    return [(pixel, label) for pixel, label in axis.ticks() if pixel > 16 and abs(pixel - x) > 44]


def _x_axis(values: Sequence[float], left: float, log: bool) -> Axis:
    if log:
        return marked_log_axis(values, left + 8, WIDTH - 18)
    return linear_axis(values, left, WIDTH - 12, whole=True)


def _y_grid(axis: Axis, left: float) -> str:
    reach = f'x1="{left:.1f}" x2="{WIDTH - 12}"'
    lines = [f'<line class="grid" {reach} y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in axis.ticks()]
    return "".join(lines + [_text(left - 6, y + 4, label, "tick", "end") for y, label in axis.ticks()])


def _x_ticks(axis: Axis, bottom: float) -> str:
    return "".join(_text(x, bottom + 17, label, "tick", "middle") for x, label in axis.ticks())


def _text(x: float, y: float, text: str, style: str, anchor: str = "start", title: str = "") -> str:
    hover = f"<title>{escape(title)}</title>" if title and title != text else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{hover}{escape(text)}</text>'


def _frame(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
