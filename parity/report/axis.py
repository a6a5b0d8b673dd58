"""Axes: where a value lies on a chart and which ticks are worth drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

HUGE = 1e300


class Axis(Protocol):
    """A scale from values to pixels."""

    def place(self, value: float) -> float | None:
        """The pixel of ``value``; None when it has no place on this axis."""

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels of the ticks, ascending in value."""


@dataclass(frozen=True)
class LinearAxis:
    """``low`` lies at pixel ``start`` and ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False

    def place(self, value: float) -> float | None:
        """NaN and infinities have no place."""
        if not math.isfinite(value):
            return None
        return self.start + (_clamp(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """About five round values; only whole ones when the axis counts things."""
        step = nice_step((self.high - self.low) / 5)
        step = max(1.0, step) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        return [(pixel, _label(value, step)) for value in values if (pixel := self.place(value)) is not None]


@dataclass(frozen=True)
class LogAxis:
    """Decades from ``10**low`` to ``10**high``; with ``zero`` an extra one at the start stands for exactly 0."""

    low: int
    high: int
    start: float
    end: float
    zero: bool = False

    def place(self, value: float) -> float | None:
        """NaN, infinities and negative values have no place, nor has 0 unless the axis keeps one for it."""
        if value == 0 and self.zero:
            return self.start
        if not math.isfinite(value) or value <= 0:
            return None
        return self._pixel(math.log10(value))

    def ticks(self) -> list[tuple[float, str]]:
        """At most about five decades, and the place of 0 when there is one."""
        every = math.ceil((self.high - self.low + 1) / 5)
        marks = [(self._pixel(exponent), decade(exponent)) for exponent in range(self.low, self.high + 1, every)]
        return [(self.start, "0"), *marks] if self.zero else marks

    def _pixel(self, exponent: float) -> float:
        low = self.low - 1 if self.zero else self.low
        return self.start + (exponent - low) / (self.high - low) * (self.end - self.start)


@dataclass(frozen=True)
class MarkedLogAxis:
    """A logarithmic axis from the smallest of ``marks`` to the largest, with a tick at each."""

    marks: tuple[float, ...]
    start: float
    end: float

    def place(self, value: float) -> float | None:
        """NaN, infinities and what is not positive have no place."""
        if not math.isfinite(value) or value <= 0:
            return None
        low, high = math.log(self.marks[0]), math.log(self.marks[-1])
        return self.start + (math.log(value) - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """The marks, in whole numbers."""
        return [(pixel, f"{mark:,.0f}") for mark in self.marks if (pixel := self.place(mark)) is not None]


def linear_axis(values: Iterable[float], start: float, end: float, whole: bool = False) -> LinearAxis:
    """A linear axis around the finite values; it does not blow up a spread of less than a hundredth of them."""
    finite = [_clamp(value) for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    air = max((high - low) * 0.05, max(abs(low), abs(high)) * 0.005) or 1.0
    if whole:
        air = 0.0 if low < high else 0.5
    return LinearAxis(low - air, high + air, start, end, whole)


def log_axis(values: Iterable[float], start: float, end: float) -> LogAxis:
    """A logarithmic axis in whole decades around the positive finite values."""
    values = list(values)
    logs = [math.log10(value) for value in values if math.isfinite(value) and value > 0] or [0.0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return LogAxis(low, max(high, low + 1), start, end, zero=any(value == 0 for value in values))


def marked_log_axis(values: Iterable[float], start: float, end: float) -> MarkedLogAxis:
    """A logarithmic axis with ticks at the positive finite values."""
    marks = sorted({value for value in values if math.isfinite(value) and value > 0}) or [1.0]
    return MarkedLogAxis(tuple(marks), start, end)


def nice_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * (1 - 1e-9)), 10 * power)


def decade(exponent: int) -> str:
    """``0.01``, ``1``, ``100``, and ``1e-7`` outside of what is read at a glance."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else f"1e{exponent}"


def _label(value: float, step: float) -> str:
    """Just the digits that tell neighbouring ticks apart."""
    exponent = math.floor(math.log10(step) + 1e-9)
    if value == 0 or abs(value) >= 1e6 or step < 1e-4:
        digits = math.floor(math.log10(abs(value))) - exponent if value else 0
        return f"{value:.{min(15, max(0, digits)) + 1}g}"
    return f"{value:.{max(0, -exponent)}f}"


def _clamp(value: float) -> float:
    return max(-HUGE, min(HUGE, value))
