"""How close is close enough between two modules, by dtype and quantity, and why.

The floors are the largest differences between transformers' Llama decoder layer and the hand-written one of
``examples/compare_modules.py``: hidden sizes 64 to 1024, 5 to 511 positions, norm weights around 1, five steps and two
seeds each.
"""

from __future__ import annotations

from collections.abc import Mapping

from parity.errors import InputError
from parity.tolerances import EXACT, PORT_FP32, SHORTFALL, Kind, Tolerance

FLOAT32 = {
    "weights": EXACT,
    "batch": EXACT,
    "out": Tolerance(Kind.OF_MAX, 1e-5, 5.0e-7, "sums in another order, through the depth of some layers"),
    "loss": Tolerance(Kind.RELATIVE, 5e-6, 7.8e-8, "a mean over few or many entries"),
    "path": PORT_FP32["path"],
    "grad": Tolerance(Kind.OF_MAX, 2e-5, 1.9e-6, "the outputs' rounding on the way back, most in the queries"),
    "grad_norm": Tolerance(Kind.RELATIVE, 2e-5, 2.6e-8, "the norm of what differs by rounding"),
    "after": Tolerance(Kind.ABSOLUTE, 3e-5, 1.2e-5, "Adam's first step is lr * sign(g): rounding in g near 0 shows"),
    "final": Tolerance(Kind.ABSOLUTE, 5e-5, 1.2e-5, "the same, over the whole curve"),
    "curve": Tolerance(Kind.RELATIVE, 2e-5, 8.3e-8, "five steps; the shipped ports' traces drift over forty"),
    "lr": EXACT,
    "rows": EXACT,
    "hits": PORT_FP32["hits"],
    "prints": PORT_FP32["prints"],
    "round_trip": EXACT,
    "resume": EXACT,
    "throughput": Tolerance(Kind.RATIO, 1 / SHORTFALL["throughput"].bound, None, "the port's seconds over the other's"),
}

FLOAT64 = {
    **FLOAT32,
    "out": Tolerance(Kind.OF_MAX, 1e-6, 2.4e-7, "norms and rotary angles are often float32 whatever comes in"),
    "loss": Tolerance(Kind.RELATIVE, 1e-7, 3.8e-9, "the same, averaged"),
    "grad": Tolerance(Kind.OF_MAX, 1e-5, 2.0e-6, "the same, on the way back"),
    "grad_norm": Tolerance(Kind.RELATIVE, 1e-6, 3.5e-8, "the same, summed"),
    "after": Tolerance(Kind.ABSOLUTE, 1e-5, 1.7e-6, "Adam's first step is lr * sign(g): rounding in g near 0 shows"),
    "final": Tolerance(Kind.ABSOLUTE, 2e-5, 4.4e-6, "the same, over the whole curve"),
    "curve": Tolerance(Kind.RELATIVE, 1e-6, 5.5e-8, "the losses' rounding after a few steps of drift"),
}

ANY_DTYPE = ("throughput", "hits", "prints")

TABLES = {"float32": FLOAT32, "fp32": FLOAT32, "float64": FLOAT64}

Tolerances = Mapping[str, Tolerance]


def has_table(dtype: str) -> bool:
    """Is there a default table?"""
    return dtype in TABLES


def table_for(dtype: str, own: Tolerances | None = None) -> dict[str, Tolerance]:
    """The default rows with a user's own in their places.

    Raises:
        InputError: an unknown quantity, or a dtype without a table and rows missing in the user's own.
    """
    own = dict(own or {})
    unknown = sorted(set(own) - set(FLOAT32))
    if unknown:
        raise InputError("comparison", "tolerances", unknown[0], f"one of {', '.join(FLOAT32)}")
    exact = {name: row for name, row in FLOAT32.items() if row is EXACT or name in ANY_DTYPE}
    table = {**TABLES.get(dtype, exact), **own}
    missing = sorted(set(FLOAT32) - set(table))
    if missing:
        expected = f"tolerances for {', '.join(missing)}: there is no default table for this dtype"
        raise InputError("comparison", "dtype", dtype, expected)
    return table
