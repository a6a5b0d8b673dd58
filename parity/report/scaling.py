"""How time and memory of a training step grow: plots on log axes with the fitted exponent, and a table of speed-ups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from parity.report.bench_file import Bench, Timing, read_all
from parity.report.files import write_beside
from parity.report.html import environment, markdown
from parity.report.numbers import short
from parity.report.sections import environment_groups
from parity.report.summary import unique
from parity.report.svg import Series, line_chart

STYLES = {"original": "base", "reference": "run0", "speculators": "run1", "port eager": "run2", "port": "run3"}
"""The sides that are drawn; the table has all of them."""

AGAINST = ("original", "reference", "speculators")
SETTLED = 1024
"""Exponents are fitted from this length on, where arithmetic and not bookkeeping takes the time."""


MACHINE = ("cpu", "cores", "device", "python", "torch", "transformers", "speculators")


@dataclass(frozen=True)
class Panel:
    """One plot, its legend and a remark per side."""

    title: str
    legend: tuple[tuple[str, str], ...]
    chart: Markup
    remarks: tuple[str, ...]


def write_scaling(bench: Sequence[Path], output: Path, title: str = "Training step") -> None:
    """Draw the timings of pytest-benchmark files into one HTML page; the first file's machine stands for all."""
    write_beside(output, render_scaling(read_all(bench), title))


def render_scaling(bench: Bench, title: str = "Training step") -> str:
    """The page as text."""
    template = environment().get_template("scaling.html.j2")
    return template.render(
        title=title,
        panels=[*length_panels(bench.timings), *step_panels(bench.timings)],
        lines=[(timing, speedups(timing, bench.timings)) for timing in bench.timings],
        against=AGAINST,
        environment=environment_groups(bench.machine),
    )


def write_performance(bench: Sequence[Path], output: Path, title: str = "Performance") -> None:
    """The same timings as a Markdown page."""
    write_beside(output, render_performance(read_all(bench), title))


def render_performance(bench: Bench, title: str = "Performance") -> str:
    """The page as text."""
    tables = [
        (where, [(t, speedups(t, bench.timings)) for t in bench.timings if _where(t) == where])
        for where in unique(_where(timing) for timing in bench.timings)
    ]
    return (
        markdown()
        .get_template("scaling.md.j2")
        .render(
            title=title,
            tables=tables,
            against=AGAINST,
            panels=[*length_panels(bench.timings), *step_panels(bench.timings)],
            machine=", ".join(f"{name} {bench.machine[name]}" for name in MACHINE if bench.machine.get(name)),
        )
    )


def speedups(timing: Timing, timings: Sequence[Timing]) -> dict[str, float]:
    """How many times faster than each other side on the same shape."""
    others = {other.side: other for other in timings if other.shape == timing.shape}
    return {side: others[side].seconds / timing.seconds for side in AGAINST if side in others and side != timing.side}


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of log y over log x by least squares; None for fewer than two places."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    centre = sum(x for x, _ in logs) / len(logs) if logs else 0.0
    spread = sum((x - centre) ** 2 for x, _ in logs)
    return sum((x - centre) * y for x, y in logs) / spread if spread > 0 else None


def length_panels(timings: Sequence[Timing]) -> list[Panel]:
    """Time and memory over T at three TTT steps, wherever two lengths were timed alike."""
    panels = []
    three = [timing for timing in timings if timing.ttt_steps == 3]
    for where in unique(_where(timing) for timing in three):
        drawn = [timing for timing in three if _where(timing) == where]
        if len({timing.length for timing in drawn}) > 1:
            panels.append(_length_panel(drawn, f"Time of {where}", "seconds per step", lambda t: t.seconds))
            panels.append(_length_panel(drawn, f"Memory of {where}", "peak GB", lambda t: t.peak_bytes / 1e9))
    return panels


def step_panels(timings: Sequence[Timing]) -> list[Panel]:
    """Time over k at the length that has the most of them."""
    panels = []
    for algorithm in unique(timing.algorithm for timing in timings):
        own = [t for t in timings if t.algorithm == algorithm and (t.dtype, t.threads, t.device) == ("fp32", 1, "cpu")]
        lengths = sorted({t.length for t in own}, key=lambda n: len({t.ttt_steps for t in own if t.length == n}))
        drawn = [timing for timing in own if timing.length == lengths[-1]] if lengths else []
        if len({timing.ttt_steps for timing in drawn}) > 2:
            series = _series(drawn, lambda t: t.ttt_steps, lambda t: t.seconds)
            title = f"Time of {algorithm} over TTT steps, T {lengths[-1]}"
            chart = Markup(line_chart(series, title, "TTT steps k", "seconds per step"))
            panels.append(
                Panel(title, _legend(series), chart, tuple(remark for line in series if (remark := _growth(line))))
            )
    return panels


def _length_panel(drawn: Sequence[Timing], title: str, y_label: str, value: Callable[[Timing], float]) -> Panel:
    series = _series(drawn, lambda t: t.length, value)
    chart = Markup(line_chart(series, title, "tokens T", y_label, log=True, log_x=True))
    return Panel(title, _legend(series), chart, tuple(remark for line in series if (remark := _exponent_of(line))))


def _series(drawn: Sequence[Timing], x: Callable[[Timing], float], y: Callable[[Timing], float]) -> list[Series]:
    lines = []
    for side, style in STYLES.items():
        points = sorted((float(x(timing)), float(y(timing))) for timing in drawn if timing.side == side)
        if points:
            lines.append(Series(side, tuple(points), style))
    return lines


def _legend(series: Sequence[Series]) -> tuple[tuple[str, str], ...]:
    return tuple((line.name, line.style) for line in series)


def _exponent_of(line: Series) -> str:
    points = [point for point in line.points if point[0] >= SETTLED]
    fitted = exponent(points)
    if fitted is None:
        return ""
    last = exponent(points[-2:])
    return f"{line.name}: T^{short(fitted)} from {points[0][0]:,.0f} on, T^{short(last)} over the last doubling"


def _growth(line: Series) -> str:
    """How far the times of the steps lie from a straight line in k; nothing for a single one."""
    count, (xs, ys) = len(line.points), zip(*line.points)
    x, y = sum(xs) / count, sum(ys) / count
    if count < 2:
        return ""
    slope = sum((a - x) * (b - y) for a, b in line.points) / sum((a - x) ** 2 for a in xs)
    off = max(abs(b - (y + slope * (a - x))) / b for a, b in line.points)
    return f"{line.name}: {short(slope)} s a step, at most {short(100 * off)} % off a straight line"


def _where(timing: Timing) -> str:
    threads = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    return ", ".join([timing.algorithm, timing.dtype, threads, *([timing.device] if timing.device != "cpu" else [])])
