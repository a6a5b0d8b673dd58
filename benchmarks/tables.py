"""``python -m benchmarks.tables bench.json ... [--into docs/performance.md]``: timings of training steps as tables.

What pytest-benchmark wrote is printed as Markdown, or takes the place of everything from ``Machine:`` on in a page.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasGenerator, AliasPath, BaseModel, ConfigDict, Field

from parity.errors import InputError
from parity.files import read_object, validated, write_whole
from parity.report.summary import grouped, short, unique, words
from ports.commands import exit_code

FITTED = ("original", "reference", "speculators", "port eager", "port")
"""The sides whose growth is told; the tables have all of them."""
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
        """Everything but the shape's sizes: what stands in one table."""
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
"""What a table's column shows."""


def read_bench(paths: Sequence[Path]) -> tuple[list[Timing], dict[str, Any]]:
    """The files of pytest-benchmark as one: timings by shape, and the machine they come from.

    Raises:
        InputError: not such a file, an entry that is no training step, or files of different machines.
    """
    expected = "a training step's JSON of pytest benchmarks --benchmark-json"
    files = [validated(path, _File, read_object(path, expected)) for path in paths]
    machine = files[0].machine
    for path, file in zip(paths, files, strict=True):
        if differ := sorted({name for name, _ in file.machine.items() ^ machine.items()}):
            raise InputError(path, "machine_info", f"another {', '.join(differ)}", f"that of {paths[0]}")
    return sorted((timing for file in files for timing in file.benchmarks), key=attrgetter("shape")), machine


def markdown(timings: Sequence[Timing], machine: dict[str, Any]) -> str:
    """From ``Machine:`` on: a table for each algorithm and machine, and how time and memory grow."""
    known = ", ".join(f"{name} {machine[name]}" for name in MACHINE if machine.get(name))
    parts = [f"Machine: {known}"]
    parts += [f"## {where}\n\n{_table(timings, mine)}" for where, mine in grouped(timings, attrgetter("where")).items()]
    grows = "\n".join(f"- {said}" for said in growth(timings))
    return "\n\n".join([*parts, *(["## How it grows", grows] if grows else [])]) + "\n"


def _table(timings: Sequence[Timing], mine: Sequence[Timing]) -> str:
    """A line for each shape and side, and how many times faster it is than others on the same shape."""
    seconds = {(timing.shape, timing.side): timing.seconds for timing in timings}

    def line(timing: Timing) -> list[Any]:
        others = (None if side == timing.side else seconds.get((timing.shape, side)) for side in AGAINST)
        faster = ("" if other is None else other / timing.seconds for other in others)
        return [*(show(timing) for show in COLUMNS.values()), *faster]

    names = [*COLUMNS, *(f"times {side}" for side in AGAINST)]
    lines = [names, ["---"] * len(names), *map(line, mine)]
    return "\n".join(f"| {' | '.join(str(words(cell)) for cell in one)} |" for one in lines)


def growth(timings: Sequence[Timing]) -> Iterator[str]:
    """Time and memory over T at three TTT steps, wherever two lengths were timed alike; then time over k."""
    three = [timing for timing in timings if timing.ttt_steps == 3]
    for where, mine in grouped(three, attrgetter("where")).items():
        yield from _fits(f"Time of {where}", mine, "T", "s per step", _exponents)
        yield from _fits(f"Memory of {where}", mine, "T", "peak GB", _exponents)
    plain = [t for t in timings if (t.dtype, t.threads, t.device) == ("fp32", 1, "cpu")]
    for algorithm in unique(timing.algorithm for timing in plain):
        lengths = grouped((t for t in plain if t.algorithm == algorithm), attrgetter("length"))
        steps = {length: len({t.ttt_steps for t in found}) for length, found in lengths.items()}
        length = max(steps, key=lambda n: (steps[n], n))
        if steps[length] > 2:
            title = f"Time of {algorithm} over TTT steps, T {length}"
            yield from _fits(title, lengths[length], "k", "s per step", _line)


def _fits(title: str, mine: Sequence[Timing], over: str, label: str, fit: Callable[..., str]) -> Iterator[str]:
    """What the fit says of each side that was timed."""
    x, y = COLUMNS[over], COLUMNS[label]
    for side in FITTED:
        points = sorted({x(t): y(t) for t in mine if t.side == side}.items())
        said = fit(*np.asarray(points, dtype=float).T) if len(points) > 1 else ""
        if said:
            yield f"{title}, {side}: {said}"


def _exponents(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """The slope of log y over log x, over all settled lengths and over the last two."""
    settled = (x >= SETTLED) & (y > 0)
    if settled.sum() < 2:
        return ""
    a, b = np.log(x[settled]), np.log(y[settled])
    slope, last = np.polyfit(a, b, 1)[0], np.polyfit(a[-2:], b[-2:], 1)[0]
    return f"T^{short(slope)} from {x[settled][0]:,.0f} on, T^{short(last)} over the last doubling"


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """How far the times of the steps lie from a straight line in k."""
    line = np.polyfit(x, y, 1)
    off = float(np.max(np.abs(np.polyval(line, x) - y) / y))
    return f"{short(line[0])} s a step, at most {short(100 * off)} % off a straight line"


def main() -> int:
    """Print the tables or write them into a page; bad input is one line and exit code 2."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="+", type=Path, help="JSON of pytest benchmarks --benchmark-json")
    parser.add_argument("--into", type=Path, help="a page whose part from Machine: on they replace")
    given = parser.parse_args()
    return exit_code(lambda: write(given.bench, given.into), InputError)


def write(bench: Sequence[Path], page: Path | None) -> None:
    """The tables to standard output, or in the place of a page's own."""
    text = markdown(*read_bench(bench))
    if page is None:
        print(text, end="")
        return
    if not page.is_file():
        raise InputError(page, "--into", "no such file", "a page with a line Machine:")
    write_whole(page, page.read_text(encoding="utf-8").partition("Machine:")[0] + text)


if __name__ == "__main__":
    sys.exit(main())
