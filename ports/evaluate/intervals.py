"""How sure a figure over prompts is.

A figure is a ratio of sums over n prompts, r = sum(y) / sum(x): tokens a proposal, say. By the delta method its
variance is that of the residuals y - r x, over (n - 1) n times the square of the mean of x; t with n - 1 degrees of
freedom makes an interval of it. The turns of a dialogue are one prompt: they hang together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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

    def plus(self, number: float) -> Estimate:
        """Moved by a constant."""
        return Estimate(self.value + number, self.low + number, self.high + number)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """sum(numerators) / sum(denominators), an entry of each for a prompt; 0 where the latter are all 0."""
    y, x = np.asarray(numerators, float), np.asarray(denominators, float)
    total, count = float(x.sum()), len(x)
    if not total:
        return Estimate(0.0, -math.inf, math.inf)
    value = float(y.sum()) / total
    if count < 2:
        return Estimate(value, -math.inf, math.inf)
    spread = float(np.sqrt(((y - value * x) ** 2).sum() / (count - 1) / count)) / (total / count)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread
    return Estimate(value, value - half, value + half)
