"""How numbers are written for people: three digits, no surprises for missing or non-finite values."""

from __future__ import annotations

import math

MISSING = "–"


def short(value: float | None, digits: int = 3) -> str:
    """A few significant digits; ``–`` when there is no value, ``NaN`` and ``inf`` spelled out."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def count(number: int, noun: str = "", plural: str = "") -> str:
    """``1,234 rows``: thousands separated, the noun in its number."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def scaled(value: float) -> str:
    """A large quantity with its SI prefix: ``1.53 G``."""
    if not math.isfinite(value):
        return short(value)
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def listing(names: list[str], limit: int = 4) -> str:
    """``a, b and c``; what lies beyond ``limit`` is only counted."""
    if len(names) > limit:
        names = [*names[: limit - 1], f"{len(names) - limit + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
