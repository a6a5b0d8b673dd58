"""How sure a figure over prompts is.

A figure is a ratio of sums over n prompts, r = sum(y) / sum(x): tokens a proposal, say. By the delta method its
variance is that of the residuals y - r x, over (n - 1) n times the square of the mean of x; t with n - 1 degrees of
freedom makes an interval of it. The turns of a dialogue are one prompt: they hang together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A ``value`` and its 95 % interval, ``low`` to ``high``; without bounds (infinite) of a single prompt."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __format__(self, digits: str) -> str:
        """The value and half of the interval, in so many digits: ``{estimate:.2f}``; the value alone of one prompt.

        Without digits as ``str``.
        """
        if not digits:
            return str(self)
        half = self.high - self.value
        return format(self.value, digits) + (f" ±{half:{digits}}" if math.isfinite(half) else "")

    def plus(self, number: float) -> Estimate:
        """Moved by a constant."""
        return Estimate(self.value + number, self.low + number, self.high + number)

    def times(self, number: float) -> Estimate:
        """In another unit."""
        return Estimate(self.value * number, self.low * number, self.high * number)

    def as_json(self) -> dict[str, float | None]:
        """JSON has no infinity: null."""
        return {name: number if math.isfinite(number) else None for name, number in vars(self).items()}


def from_json(told: Mapping[str, float | None]) -> Estimate:
    """What :meth:`Estimate.as_json` has given."""
    ends = {"value": 0.0, "low": -math.inf, "high": math.inf}
    found = {name: told[name] for name in ends}
    return Estimate(**{name: end if (number := found[name]) is None else number for name, end in ends.items()})


class Ratio:
    """sum(numerators) / sum(denominators) as ``value``, an entry of each for a prompt; 0 where the latter are all 0.

    ``moves`` [prompts] are what each prompt adds to it, to first order: their mean is 0, and the variance of ``value``
    is that of their mean.
    """

    def __init__(self, numerators: Sequence[float], denominators: Sequence[float]) -> None:
        y, x = np.asarray(numerators, float), np.asarray(denominators, float)
        total = float(x.sum())
        self.value = float(y.sum()) / total if total else 0.0
        self.moves = (y - self.value * x) / (total / len(x)) if total else np.full(len(x), np.inf)

    def estimate(self) -> Estimate:
        """With its interval."""
        return interval(self.value, self.moves)

    def over(self, other: Ratio) -> Estimate:
        """How many times ``other``, of the same prompts."""
        times = self.value / other.value
        return interval(times, (self.moves - times * other.moves) / other.value)

    def minus(self, other: Ratio, level: float = LEVEL) -> Estimate:
        """By how much it is more than ``other``, of the same prompts."""
        return interval(self.value - other.value, self.moves - other.moves, level)


def interval(value: float, moves: NDArray[np.float64], level: float = LEVEL) -> Estimate:
    """By t, from what each prompt adds to ``value``."""
    count = len(moves)
    if count < 2 or not np.isfinite(moves).all():
        return Estimate(value, -math.inf, math.inf)
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * np.sqrt((moves**2).sum() / (count - 1) / count))
    return Estimate(value, value - half, value + half)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """A :class:`Ratio` with its interval."""
    return Ratio(numerators, denominators).estimate()
