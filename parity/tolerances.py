"""Bounds that no run has to be moved for: what is exact, what counts units of rounding, a user's own, and a table.

All others are measured, see :mod:`parity.allowed`. The table is for traces of which nobody knows what one rounding does
to them: old ones, and those of programs that cannot be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from parity.errors import InputError
from parity.files import read_object, validated

Size = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Kind(str, Enum):
    """What is measured. Every kind fails on NaN, on another shape and on nothing compared."""

    EQUAL = "entries that differ"
    ABSOLUTE = "largest absolute difference"
    OF_MAX = "largest difference over the largest entry"
    RELATIVE = "largest relative difference"
    RMS = "root mean square of the difference over that of the original"
    RATIO = "ratio"
    ROUNDING = "units of rounding"


def _kind(name: Any) -> Kind:
    if name not in [*Kind.__members__]:
        raise ValueError(f"one of {', '.join(Kind.__members__)}")
    return Kind[name]


@dataclass(frozen=True)
class Tolerance:
    """A bound on one quantity, why it is what it is, and where it is from: ``rounding``, ``table`` or ``own``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Annotated[Kind, BeforeValidator(_kind)]
    bound: Size
    reason: Annotated[str, Field(pattern=r"\S")]
    source: Literal["rounding", "table", "own"] = "own"


Tolerances = Mapping[str, Tolerance]

EXACT = Tolerance(Kind.EQUAL, 0.0, "data movement and whole numbers leave no room for rounding")

HELD: Tolerances = {
    **dict.fromkeys(("weights", "configuration", "batch", "draw", "lr", "rows", "hits", "round_trip", "resume"), EXACT),
    "clip": Tolerance(Kind.ROUNDING, 64, "a norm over all entries, summed up in float32"),
    "update": Tolerance(Kind.ROUNDING, 4, "each of four operations rounds once, by half a unit"),
    "state": Tolerance(Kind.ROUNDING, 3, "two products and a sum, each rounds by half a unit"),
    "throughput": Tolerance(Kind.RATIO, 1 / 0.9, "the port's seconds over the other's: at most 10 % slower"),
}
"""By quantity, what holds in every precision."""

UNITS = {
    "out": 128,
    "loss": 64,
    "grad": 256,
    "grad_norm": 256,
    "curve": 256,
    "cross_step_grad": 1024,
    "after_step1": 4096,
    "final": 4096,
}
"""By quantity, how many :data:`ROUNDING_STEPS` apart two correct implementations may be, where nothing is known."""

ROUNDING_STEPS = {"float32": 2.0**-23, "float64": 2.0**-26, "float16": 2.0**-15, "bfloat16": 2.0**-12}
"""By dtype. Norms and rotary angles of a float64 model are often float32; in half precision sums are wider."""

QUANTITIES = (*HELD, *UNITS)
"""What a user may give a bound of his own for; whatever has another name is an ``out``."""


def by_dtype(quantity: str, dtype: str) -> Tolerance:
    """The table's row.

    Raises:
        InputError: there is none for this dtype.
    """
    if dtype not in ROUNDING_STEPS:
        raise InputError("comparison", "dtype", dtype, f"one of {', '.join(ROUNDING_STEPS)}, or tolerances of your own")
    reason = f"the table's for {dtype}: nobody moved the original"
    return Tolerance(Kind.RMS, UNITS[quantity] * ROUNDING_STEPS[dtype], reason, "table")


def checked(own: Tolerances) -> Tolerances:
    """A user's own.

    Raises:
        InputError: an unknown quantity.
    """
    if unknown := sorted({*own} - {*QUANTITIES}):
        raise InputError("comparison", "tolerances", unknown[0], f"one of {', '.join(QUANTITIES)}")
    return own


def read_tolerances(file: Path) -> dict[str, Tolerance]:
    """Rows of a JSON object ``{"out": {"kind": "OF_MAX", "bound": 1e-3, "reason": "..."}}``.

    Raises:
        InputError: another form, an unknown kind, or no reason.
    """
    return dict(validated(file, dict[str, Tolerance], read_object(file)))
