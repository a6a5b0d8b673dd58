"""Line charts as inline SVG, drawn by matplotlib and coloured by the page's style sheet, in light and dark.

Every colour is drawn as a stand-in that no chart uses otherwise, and becomes a CSS variable of the page in the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

WIDTH, FOOT = 4.0, 0.2
"""Of a chart, and what is below its axes, in inches, 72 points each."""
LARGEST = 1e100
"""What lies beyond is drawn there: no axis reaches further."""

STYLES: dict[str, dict[str, Any]] = {
    "base": {"color": "#000010", "linewidth": 4.5, "solid_capstyle": "round"},
    "run0": {"color": "#000011", "linewidth": 1.2},
    "run1": {"color": "#000012", "linewidth": 1.2, "linestyle": (0, (4, 2.5))},
    "run2": {"color": "#000013", "linewidth": 1.2, "linestyle": (0, (1.5, 2))},
    "run3": {"color": "#000014", "linewidth": 1.2, "linestyle": (0, (6, 2, 1.5, 2))},
}
INK, RULE = "#000015", "#000016"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), RULE),
}
NAMELESS = dict.fromkeys(("Date", "Creator", "Format", "Type"))
INSTEAD = (
    (r' id="[^"]*"', ""),
    (r"font-family: [^;]*; ", ""),
    (r"font: ([\d.]+px)[^;]*", r"font-size: \1"),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\.\d)\d+", r"\1"),
    *((f": {style['color']}", f": var(--{name})") for name, style in STYLES.items()),
    *((f": {colour}", f": var(--{name})") for colour, name in ((INK, "soft"), (RULE, "rule"))),
)
"""Within tags, what the page has no use for: names that it would hold twice, fonts and colours other than its own, a
thousandth of a point."""


@dataclass(frozen=True)
class Series:
    """One line: its points and the style that colours it."""

    x: Sequence[float]
    y: Sequence[float]
    style: str


@dataclass(frozen=True)
class Axes:
    """One coordinate system with its lines; ``log`` axes keep a place for 0."""

    label: str
    series: Sequence[Series]
    log: bool = False
    height: float = 1.85


def draw(title: str, x_label: str, *axes: Axes) -> Markup:
    """The axes below each other as one ``<svg>``, its text as text; what is not finite leaves a gap.

    Labels are the page's own words, never a name out of a report; ``title`` may be anything.
    """
    import matplotlib as mpl  # here, since only pages need it and it takes a while
    from matplotlib.figure import Figure

    heights = [each.height for each in axes]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, FOOT + sum(heights)), layout="constrained")
        places = figure.subplots(len(axes), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for each, on in zip(axes, places, strict=True):
            _draw_axes(each, on)
        places[-1].set_xlabel(x_label, loc="right")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=NAMELESS)
    return _inline(text.getvalue(), title)


def _draw_axes(axes: Axes, on: Any) -> None:
    on.set_title(axes.label, loc="left", fontsize=8.5)
    on.spines[["top", "right", "left"]].set_visible(False)
    on.tick_params(length=0)
    on.grid(axis="y", linewidth=0.6, clip_on=False)
    on.locator_params(nbins=6, min_n_ticks=2)
    drawn = [_drawable(series.y, axes.log) for series in axes.series]
    values = np.concatenate([y[~np.isnan(y)] for y in drawn] or [np.zeros(0)])
    if not len(values):
        on.text(0.5, 0.5, "no finite values", transform=on.transAxes, ha="center")
        on.set_yticks([])
    else:
        (_log_axis if axes.log else _linear_axis)(on, values)
    for series, y in zip(axes.series, drawn, strict=True):
        _draw_line(on, np.asarray(series.x, dtype=float), y, STYLES[series.style])
    on.xaxis.get_major_locator().set_params(integer=True)


def _drawable(values: Sequence[float], log: bool) -> NDArray[np.float64]:
    """NaN where a value has no place, and nothing beyond what an axis can show."""
    y = np.asarray(values, dtype=float)
    y = np.where(~np.isfinite(y) | (log & (y < 0)), np.nan, np.clip(y, -LARGEST, LARGEST))
    return np.where(log & (y > 0), np.maximum(y, 1 / LARGEST), y)


def _draw_line(on: Any, x: NDArray[np.float64], y: NDArray[np.float64], style: dict[str, Any]) -> None:
    """A line, and a dot for a value without neighbours, which a line would not show."""
    on.plot(x, y, clip_on=False, **style)
    known = np.pad(~np.isnan(y), 1)
    dot = {"color": style["color"], "linewidth": style["linewidth"] + 3, "solid_capstyle": "round", "clip_on": False}
    for index in np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]):
        on.plot(x[[index, index]], y[[index, index]], **dot)


def _linear_axis(on: Any, values: NDArray[np.float64]) -> None:
    """Does not blow up a spread of less than a hundredth of the values."""
    low, high = float(np.min(values)), float(np.max(values))
    air = max((high - low) * 0.05, max(abs(low), abs(high)) * 0.005) or 1.0
    on.set_ylim(low - air, high + air)
    on.yaxis.set_major_formatter("{x:g}")


def _log_axis(on: Any, values: NDArray[np.float64]) -> None:
    """Whole decades; where there are zeros, an extra one at the foot stands for them."""
    logs = np.log10(values[values > 0]) if values.any() else np.zeros(1)
    low, high = int(np.floor(np.min(logs))), int(np.ceil(np.max(logs)))
    high = max(high, low + 1)
    marks = [10.0**power for power in range(low, high + 1, -(-(high - low + 1) // 5))]
    on.set_yscale("symlog", linthresh=10.0**low)  # from there on as "log"
    if not values.all():
        marks = [0.0, *marks]
    on.set_ylim(marks[0], 10.0**high)
    on.set_yticks(marks, [f"{mark:g}" for mark in marks])
    on.set_yticks([], minor=True)


def _inline(text: str, title: str) -> Markup:
    """The drawing alone, without prologue and definitions, in the page's colours."""
    box = re.search(r'viewBox="[^"]*"', text)
    body = re.sub(r"<[^>]*>", _plain_tag, re.sub(r"\s+", " ", text.partition("</defs>")[2]))
    head = Markup('<svg class="chart" {} role="img" aria-label="{}"><title>{}</title>').format(
        Markup(box[0] if box else ""), title, title
    )
    return head + Markup(body)


def _plain_tag(tag: re.Match[str]) -> str:
    text = tag[0]
    for found, instead in INSTEAD:
        text = re.sub(found, instead, text)
    return text
