"""How close is close enough between two modules, by dtype and quantity, and why.

The floors were measured between transformers' Llama decoder layer and the hand-written one of
``examples/compare_modules.py``, hidden sizes 64 to 1024, 5 to 511 positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from parity.errors import InputError
from parity.tolerances import EXACT, PORT_FP32, Kind, Tolerance

FLOAT32 = {
    "weights": EXACT,
    "batch": EXACT,
    "out": Tolerance(Kind.OF_MAX, 2e-5, None, "sums in another order, through the depth of a few layers"),
    "loss": Tolerance(Kind.RELATIVE, 5e-6, None, "a mean over many entries"),
    "path": Tolerance(Kind.RELATIVE, 1e-4, None, "norms of gradients through earlier steps; a cut path is off by 1"),
    "grad": Tolerance(Kind.OF_MAX, 2e-5, None, "the outputs' rounding, once more on the way back"),
    "grad_norm": Tolerance(Kind.RELATIVE, 2e-5, None, "the norm of what differs by rounding"),
    "after": Tolerance(Kind.ABSOLUTE, 3e-5, None, "Adam's first step is lr * sign(g): rounding in g near 0 shows"),
    "final": Tolerance(Kind.ABSOLUTE, 5e-5, None, "the same, over the whole curve"),
    "curve": Tolerance(Kind.RELATIVE, 2e-5, None, "the losses' rounding after a few steps of drift"),
    "lr": EXACT,
    "rows": EXACT,
    "hits": PORT_FP32["hits"],
    "prints": PORT_FP32["prints"],
    "round_trip": EXACT,
    "resume": EXACT,
    "throughput": Tolerance(Kind.RATIO, 1 / 0.9, None, "the port may be at most 10 % slower"),
}

FLOAT64 = {
    **FLOAT32,
    "out": Tolerance(Kind.OF_MAX, 1e-6, None, "norms and rotary angles are often float32 whatever comes in"),
    "loss": Tolerance(Kind.RELATIVE, 1e-6, None, "the same"),
    "grad": Tolerance(Kind.OF_MAX, 1e-6, None, "the same"),
    "grad_norm": Tolerance(Kind.RELATIVE, 1e-6, None, "the same"),
    "after": Tolerance(Kind.ABSOLUTE, 3e-6, None, "Adam's first step is lr * sign(g): rounding in g near 0 shows"),
    "final": Tolerance(Kind.ABSOLUTE, 5e-6, None, "the same, over the whole curve"),
    "curve": Tolerance(Kind.RELATIVE, 1e-6, None, "the losses' rounding after a few steps of drift"),
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
