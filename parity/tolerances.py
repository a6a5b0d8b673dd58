"""How close is close enough: ``tolerances.yaml`` read, one table for each kind of comparison. No check has a number.

A row holds the bound, what is measured, the floor that was seen where nothing was wrong, where it was seen, and why the
bound is what it is. A pair's own rows take the places of a table's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ConfigDict, Field

from parity.errors import InputError
from parity.files import read_object, validated

FILE = Path(__file__).with_suffix(".yaml")
Size = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Kind(str, Enum):
    """What is measured. Every kind fails on NaN, on another shape and on nothing compared."""

    EQUAL = "entries that differ"
    ABSOLUTE = "largest absolute difference"
    OF_MAX = "largest difference over the largest entry"
    RELATIVE = "largest relative difference"
    RATIO = "ratio"
    ROUNDING = "units of rounding"


def _kind(name: Any) -> Kind:
    if name not in [*Kind.__members__]:
        raise ValueError(f"one of {', '.join(Kind.__members__)}")
    return Kind[name]


@dataclass(frozen=True)
class Tolerance:
    """A bound on one quantity; ``machine`` says where the floor was seen, with versions."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Annotated[Kind, BeforeValidator(_kind)]
    bound: Size
    floor: Size | None
    reason: Annotated[str, Field(pattern=r"\S")]
    machine: str = ""


Tolerances = Mapping[str, Tolerance]
Row = Annotated[Tolerance, BeforeValidator(lambda row: {"floor": None, **row} if isinstance(row, dict) else row)]
"""A tolerance as a file has it: its kind by name, a floor where one is known."""

EXACT = Tolerance(Kind.EQUAL, 0.0, None, "data movement and whole numbers leave no room for rounding")

GENERIC = {"float32": "float32", "fp32": "float32", "float64": "float64"}
"""The table of any two modules, by dtype."""

SCALE_FREE, OF_ANY_DTYPE = (Kind.EQUAL, Kind.ROUNDING), ("throughput", "prints")
"""Rows that hold in every dtype: what must be equal, what is counted in units of rounding, and what is no tensor."""


@cache
def tables() -> dict[str, dict[str, Tolerance]]:
    """Every table of ``tolerances.yaml``."""
    document = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: validated(FILE, dict[str, Row], rows) for name, rows in document["tables"].items()}


def table_for(dtype: str, own: Tolerances | None = None, by_dtype: Mapping[str, str] = GENERIC) -> dict[str, Tolerance]:
    """A table with a user's own rows in their places.

    Raises:
        InputError: an unknown quantity, or a dtype without a table and rows missing in the user's own.
    """
    own = dict(own or {})
    known = tables()[by_dtype.get(dtype, GENERIC["float32"])]
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise InputError("comparison", "tolerances", unknown[0], f"one of {', '.join(known)}")
    fixed = {name: row for name, row in known.items() if row.kind in SCALE_FREE or name in OF_ANY_DTYPE}
    table = {**(known if dtype in by_dtype else fixed), **own}
    missing = sorted(set(known) - set(table))
    if missing:
        expected = f"tolerances for {', '.join(missing)}: there is no default table for this dtype"
        raise InputError("comparison", "dtype", dtype, expected)
    return table


def read_tolerances(file: Path) -> dict[str, Tolerance]:
    """Rows of a JSON object ``{"out": {"kind": "OF_MAX", "bound": 1e-3, "reason": "..."}}``.

    Raises:
        InputError: another form, an unknown kind, or no reason.
    """
    return dict(validated(file, dict[str, Row], read_object(file)))
