"""How time and memory of a training step grow, from the JSON of pytest-benchmark: a page, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasGenerator, AliasPath, BaseModel, ConfigDict, Field, ValidationError

from parity.errors import InputError
from parity.files import misfit, read_object, write_whole
from parity.report.figures import Axes, Series, draw
from parity.report.page import Panel, Table, environment, render, templates
from parity.report.summary import grouped, short, unique

STYLES = {"original": "base", "reference": "run0", "speculators": "run1", "port eager": "run2", "port": "run3"}
"""The sides that are drawn; the table has all of them."""
AGAINST = ("original", "reference", "speculators")
SETTLED = 1024
"""Exponents are fitted from this length on, where arithmetic and not bookkeeping takes the time."""
MACHINE = ("cpu", "cores", "device", "python", "torch", "transformers", "speculators")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Timing(BaseModel):
    """One side on one shape: seconds of its fastest optimizer step, bytes at its peak.

    ``fraction_of_gemm_peak`` is useful FLOPs over time over what a square product reached, None where that was not
    measured.
    """

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasPath("extra_info", name))
    )

    seconds: Positive = Field(validation_alias=AliasPath("stats", "min"))
    algorithm: str
    length: Annotated[int, Field(gt=0)]
    ttt_steps: int
    dtype: str
    threads: int
    device: str
    side: str
    tokens_per_second: float
    peak_bytes: int
    fraction_of_gemm_peak: Optional[float]  # noqa: UP045  (read by pydantic on 3.10)

    @property
    def shape(self) -> tuple[str, int, int, str, int, str]:
        """Everything but who ran it."""
        return (self.algorithm, self.length, self.ttt_steps, self.dtype, self.threads, self.device)

    @property
    def where(self) -> str:
        """Everything but the shape's sizes: what is drawn together."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return ", ".join([self.algorithm, self.dtype, threads, *([self.device] if self.device != "cpu" else [])])


class _File(BaseModel):
    benchmarks: Annotated[list[Timing], Field(min_length=1)]
    machine: dict[str, Any] = Field(default={}, validation_alias=AliasPath("machine_info", "parity"))


COLUMNS: dict[str, Callable[[Timing], Any]] = {
    "T": attrgetter("length"),
    "k": attrgetter("ttt_steps"),
    "side": attrgetter("side"),
    "s per step": attrgetter("seconds"),
    "tokens/s": attrgetter("tokens_per_second"),
    "peak GB": lambda timing: timing.peak_bytes / 1e9,
    "share of peak": attrgetter("fraction_of_gemm_peak"),
}
"""What a table's column and an axis show."""


def read_bench(paths: Sequence[Path]) -> tuple[list[Timing], dict[str, Any]]:
    """The files of pytest-benchmark as one: timings by shape, and the machine they come from.

    Raises:
        InputError: not such a file, an entry that is no training step, or files of different machines.
    """
    files = [_read(path) for path in paths]
    machine = files[0].machine
    for path, file in zip(paths, files, strict=True):
        if differ := sorted({name for name, _ in file.machine.items() ^ machine.items()}):
            raise InputError(path, "machine_info", f"another {', '.join(differ)}", f"that of {paths[0]}")
    return sorted((timing for file in files for timing in file.benchmarks), key=attrgetter("shape")), machine


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(read_object(path, "a training step's JSON of pytest benchmarks --benchmark-json"))
    except ValidationError as error:
        raise misfit(path, error) from error


def write_scaling(bench: Sequence[Path], output: Path) -> None:
    """Draw the timings of pytest-benchmark files into one HTML page; InputError for what cannot be read or written."""
    timings, machine = read_bench(bench)
    values = {"tables": tables(timings), "drawn": panels_of(timings), "environment": environment(machine)}
    write_whole(output, render("bench.html.j2", title="Training step", **values))


def write_performance(bench: Sequence[Path], output: Path) -> None:
    """The same timings as tables in Markdown."""
    timings, machine = read_bench(bench)
    known = ", ".join(f"{name} {machine[name]}" for name in MACHINE if machine.get(name))
    template = templates().get_template("bench.md.j2")
    write_whole(output, template.render(machine=known, tables=tables(timings), drawn=panels_of(timings)) + "\n")


def tables(timings: Sequence[Timing]) -> dict[str, Table]:
    """By algorithm and machine a line for each shape and side, and how many times faster it is than others on it."""
    columns = [
        (name, "" if name == "side" else "number") for name in (*COLUMNS, *(f"times {side}" for side in AGAINST))
    ]
    seconds = {(timing.shape, timing.side): timing.seconds for timing in timings}

    def line(timing: Timing) -> list[Any]:
        others = (None if side == timing.side else seconds.get((timing.shape, side)) for side in AGAINST)
        faster = ("" if other is None else other / timing.seconds for other in others)
        return [*(show(timing) for show in COLUMNS.values()), *faster]

    return {where: Table(columns, [*map(line, mine)]) for where, mine in grouped(timings, attrgetter("where")).items()}


def panels_of(timings: Sequence[Timing]) -> list[Panel]:
    """Time and memory over T at three TTT steps, wherever two lengths were timed alike; then time over k."""
    panels = []
    three = [timing for timing in timings if timing.ttt_steps == 3]
    for where, drawn in grouped(three, attrgetter("where")).items():
        if len({timing.length for timing in drawn}) > 1:
            panels.append(_panel(drawn, f"Time of {where}", "T", "s per step", _exponents))
            panels.append(_panel(drawn, f"Memory of {where}", "T", "peak GB", _exponents))
    plain = [t for t in timings if (t.dtype, t.threads, t.device) == ("fp32", 1, "cpu")]
    for algorithm in unique(timing.algorithm for timing in plain):
        lengths = grouped((t for t in plain if t.algorithm == algorithm), attrgetter("length"))
        steps = {length: len({t.ttt_steps for t in found}) for length, found in lengths.items()}
        length = max(steps, key=lambda n: (steps[n], n))
        if steps[length] > 2:
            title = f"Time of {algorithm} over TTT steps, T {length}"
            panels.append(_panel(lengths[length], title, "k", "s per step", _growth))
    return panels


def _panel(drawn: Sequence[Timing], title: str, over: str, label: str, fit: Callable[..., str]) -> Panel:
    """A line for each side that was timed, and what the fit says of it; logarithmic axes for lengths."""
    x, y, log = COLUMNS[over], COLUMNS[label], over == "T"
    points = {side: sorted({x(t): y(t) for t in drawn if t.side == side}.items()) for side in STYLES}
    lines = {side: np.asarray(found, dtype=float).T for side, found in points.items() if found}
    series = [Series(line[0].tolist(), line[1].tolist(), STYLES[side]) for side, line in lines.items()]
    remarks = [f"{side}: {said}" for side, line in lines.items() if (said := fit(*line))]
    drawing = draw(title, over, Axes(label, series, log=log, doubling=log))
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
