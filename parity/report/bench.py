"""How time and memory of a training step grow, from the JSON of pytest-benchmark: a page, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from parity.errors import InputError
from parity.report.figures import Axes, Series, draw
from parity.report.page import Block, Panel, Panels, Table, environment, render, templates
from parity.report.summary import scaled, short, unique, write_whole

STYLES = {"original": "base", "reference": "run0", "speculators": "run1", "port eager": "run2", "port": "run3"}
"""The sides that are drawn; the table has all of them."""
AGAINST = ("original", "reference", "speculators")
SETTLED = 1024
"""Exponents are fitted from this length on, where arithmetic and not bookkeeping takes the time."""
MACHINE = ("cpu", "cores", "device", "python", "torch", "transformers", "speculators")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Timing(BaseModel):
    """One side on one shape: seconds of its fastest optimizer step, bytes at its peak, FLOPs of a step.

    ``flops`` were counted, ``useful_flops`` are what the step needs; ``fraction_of_gemm_peak`` is useful FLOPs over
    time over what a square product reached, None where that was not measured.
    """

    algorithm: str
    length: Annotated[int, Field(gt=0)]
    ttt_steps: int
    dtype: str
    threads: int
    device: str
    side: str
    tokens_per_second: float
    peak_bytes: int
    flops: int
    useful_flops: int
    fraction_of_gemm_peak: Optional[float]  # noqa: UP045  (read by pydantic on 3.10)
    seconds: float = 0.0

    @property
    def shape(self) -> tuple[str, int, int, str, int, str]:
        """Everything but who ran it."""
        return (self.algorithm, self.length, self.ttt_steps, self.dtype, self.threads, self.device)

    @property
    def where(self) -> str:
        """Everything but the shape's sizes: what is drawn together."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return ", ".join([self.algorithm, self.dtype, threads, *([self.device] if self.device != "cpu" else [])])


class _Stats(BaseModel):
    min: Positive


class _Entry(BaseModel):
    stats: _Stats
    extra_info: Timing


class _Machine(BaseModel):
    parity: dict[str, Any] = {}


class _File(BaseModel):
    benchmarks: Annotated[list[_Entry], Field(min_length=1)]
    machine_info: _Machine


Bench = tuple[list[Timing], dict[str, Any]]
"""Timings by shape, and the machine they come from."""


def read_bench(paths: Sequence[Path]) -> Bench:
    """The files of pytest-benchmark as one.

    Raises:
        InputError: not such a file, an entry that is no training step, or files of different machines.
    """
    files = [_read(path) for path in paths]
    machine = files[0].machine_info.parity
    for path, file in zip(paths, files, strict=True):
        other = file.machine_info.parity
        if differ := sorted(name for name in {*other, *machine} if other.get(name) != machine.get(name)):
            raise InputError(path, "machine_info", f"another {', '.join(differ)}", f"that of {paths[0]}")
    entries = [entry for file in files for entry in file.benchmarks]
    timings = [entry.extra_info.model_copy(update={"seconds": entry.stats.min}) for entry in entries]
    return sorted(timings, key=lambda timing: timing.shape), machine


def _read(path: Path) -> _File:
    expected = "a training step's JSON of pytest benchmarks --benchmark-json"
    try:
        return _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(path, "file", error.strerror, expected) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise InputError(path, place, first["msg"], expected) from error


def write_scaling(bench: Sequence[Path], output: Path, title: str = "Training step") -> None:
    """Draw the timings of pytest-benchmark files into one HTML page; InputError for what cannot be read or written."""
    timings, machine = read_bench(bench)
    columns = ("shape", "side", "seconds", "tokens per second", "peak GB", "share of peak", "FLOPs", "useful")
    lines = [[_name(t), *_figures(t), scaled(t.flops), scaled(t.useful_flops), *_times(t, timings)] for t in timings]
    kinds = ["name", "", *["number"] * (len(columns) - 2 + len(AGAINST))]
    table = Table(
        tuple(zip([*columns, *(f"times {side}" for side in AGAINST)], kinds, strict=True)), lines, "comparisons"
    )
    panels = panels_of(timings)
    blocks: dict[str, list[Block]] = {
        "plots": [Panels(panels)] if panels else [],
        "shapes": [table],
        "environment": environment(machine),
    }
    write_whole(output, render(title, blocks))


def write_performance(bench: Sequence[Path], output: Path) -> None:
    """The same timings as tables in Markdown."""
    timings, machine = read_bench(bench)
    names = ("T", "k", "side", "s per step", "tokens/s", "peak GB", "share of peak", *(f"times {s}" for s in AGAINST))
    tables = {}
    for where in unique(timing.where for timing in timings):
        mine = [timing for timing in timings if timing.where == where]
        lines = [[t.length, t.ttt_steps, *_figures(t), *_times(t, timings)] for t in mine]
        tables[where] = Table(tuple((name, "") for name in names), lines).markdown()
    template = templates(autoescape=False).get_template("bench.md.j2")
    text = template.render(
        machine=", ".join(f"{name} {machine[name]}" for name in MACHINE if machine.get(name)),
        tables=tables,
        grown=[(panel.title, said) for panel in panels_of(timings) for said in panel.remarks],
    )
    write_whole(output, text + "\n")


def _name(timing: Timing) -> str:
    return f"{timing.algorithm} T{timing.length} k{timing.ttt_steps} {timing.where.partition(', ')[2]}"


def _figures(timing: Timing) -> list[str]:
    numbers = (timing.seconds, timing.tokens_per_second, timing.peak_bytes / 1e9, timing.fraction_of_gemm_peak)
    return [timing.side, *map(short, numbers)]


def _times(timing: Timing, timings: Sequence[Timing]) -> list[str]:
    """How many times faster than each other side on the same shape."""
    others = {
        other.side: other.seconds for other in timings if other.shape == timing.shape and other.side != timing.side
    }
    return [short(others[side] / timing.seconds) if side in others else "" for side in AGAINST]


def panels_of(timings: Sequence[Timing]) -> list[Panel]:
    """Time and memory over T at three TTT steps, wherever two lengths were timed alike; then time over k."""
    panels = []
    three = [timing for timing in timings if timing.ttt_steps == 3]
    for where in unique(timing.where for timing in three):
        drawn = [timing for timing in three if timing.where == where]
        if len({timing.length for timing in drawn}) > 1:
            panels.append(_panel(drawn, f"Time of {where}", "tokens T", "seconds per step", _exponents))
            panels.append(_panel(drawn, f"Memory of {where}", "tokens T", "peak GB", _exponents))
    for algorithm in unique(timing.algorithm for timing in timings):
        own = [t for t in timings if (t.algorithm, t.dtype, t.threads, t.device) == (algorithm, "fp32", 1, "cpu")]
        steps = {n: len({t.ttt_steps for t in own if t.length == n}) for n in sorted({t.length for t in own})}
        if max(steps.values(), default=0) > 2:
            length = max(steps, key=lambda n: (steps[n], n))
            title, drawn = f"Time of {algorithm} over TTT steps, T {length}", [t for t in own if t.length == length]
            panels.append(_panel(drawn, title, "TTT steps k", "seconds per step", _growth))
    return panels


VALUES: dict[str, Callable[[Timing], float]] = {
    "tokens T": lambda timing: timing.length,
    "TTT steps k": lambda timing: timing.ttt_steps,
    "seconds per step": lambda timing: timing.seconds,
    "peak GB": lambda timing: timing.peak_bytes / 1e9,
}
"""What an axis shows."""


def _panel(drawn: Sequence[Timing], title: str, over: str, label: str, fit: Callable[..., str]) -> Panel:
    """A line for each side that was timed, and what the fit says of it; logarithmic axes for lengths."""
    x, y, log = VALUES[over], VALUES[label], over == "tokens T"
    points = {side: sorted({x(t): y(t) for t in drawn if t.side == side}.items()) for side in STYLES}
    lines = {side: np.asarray(found, dtype=float).T for side, found in points.items() if found}
    series = [Series(line[0].tolist(), line[1].tolist(), STYLES[side]) for side, line in lines.items()]
    marks = sorted({x(timing) for timing in drawn}) if log else []
    remarks = [f"{side}: {said}" for side, line in lines.items() if (said := fit(*line))]
    drawing = draw(title, over, Axes(label, series, log=log, marks=marks))
    return Panel(title, drawing, [(side, STYLES[side]) for side in lines], remarks)


def _exponents(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """The slope of log y over log x, over all settled lengths and over the last two."""
    settled = (x >= SETTLED) & (y > 0)
    if settled.sum() < 2:
        return ""
    a, b = np.log(x[settled]), np.log(y[settled])
    slope, last = np.polyfit(a, b, 1)[0], np.polyfit(a[-2:], b[-2:], 1)[0]
    return f"T^{short(slope)} from {x[settled][0]:,.0f} on, T^{short(last)} over the last doubling"


def _growth(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """How far the times of the steps lie from a straight line in k; nothing for a single one."""
    if len(x) < 2:
        return ""
    line = np.polyfit(x, y, 1)
    off = float(np.max(np.abs(np.polyval(line, x) - y) / y))
    return f"{short(line[0])} s a step, at most {short(100 * off)} % off a straight line"
