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
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from parity.errors import InputError
from parity.files import misfit, read_object

FILE = Path(__file__).with_suffix(".yaml")


class Kind(str, Enum):
    """What is measured. Every kind fails on NaN, on another shape and on nothing compared."""

    EQUAL = "entries that differ"
    ABSOLUTE = "largest absolute difference"
    OF_MAX = "largest difference over the largest entry"
    OF_SUM = "sum of differences over the sum of entries"
    RELATIVE = "largest relative difference"
    RATIO = "ratio"
    ROUNDING = "units of rounding"


@dataclass(frozen=True)
class Tolerance:
    """A bound on one quantity; ``machine`` says where the floor was seen, with versions."""

    kind: Kind
    bound: float
    floor: float | None
    reason: str
    machine: str = ""


Tolerances = Mapping[str, Tolerance]

EXACT = Tolerance(Kind.EQUAL, 0.0, None, "data movement and whole numbers leave no room for rounding")

GENERIC = {"float32": "float32", "fp32": "float32", "float64": "float64"}
"""The table of any two modules, by dtype."""

SCALE_FREE, OF_ANY_DTYPE = (Kind.EQUAL, Kind.ROUNDING), ("throughput", "prints")
"""Rows that hold in every dtype: what must be equal, what is counted in units of rounding, and what is no tensor."""


class Entry(BaseModel):
    """A row as a file has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    bound: float = Field(ge=0, allow_inf_nan=False)
    reason: str = Field(min_length=1)
    floor: float | None = Field(None, ge=0, allow_inf_nan=False)
    seen: str = ""

    @field_validator("kind")
    @classmethod
    def known(cls, value: str) -> str:
        if value not in Kind.__members__:
            raise ValueError(f"one of {', '.join(Kind.__members__)}")
        return value

    @field_validator("reason")
    @classmethod
    def said(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("why the bound is what it is")
        return value

    def row(self, machine: str = "") -> Tolerance:
        return Tolerance(Kind[self.kind], float(self.bound), self.floor, self.reason, machine)


class Entries(BaseModel):
    """``--tolerances FILE``: rows by quantity."""

    rows: dict[str, Entry]


@cache
def tables() -> dict[str, dict[str, Tolerance]]:
    """Every table of ``tolerances.yaml``; one that extends another has its rows too."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Tolerance]] = {}
    for name, rows in document["tables"].items():
        entries = {quantity: Entry.model_validate(row) for quantity, row in rows.items() if quantity != "extends"}
        own = {
            quantity: row.row(document["machines"][row.seen] if row.seen else "") for quantity, row in entries.items()
        }
        found[name] = {**found.get(rows.get("extends", ""), {}), **own}
    return found


def table_for(dtype: str, own: Tolerances | None = None, by_dtype: Mapping[str, str] = GENERIC) -> dict[str, Tolerance]:
    """A table with a user's own rows in their places.

    Raises:
        InputError: an unknown quantity, or a dtype without a table and rows missing in the user's own.
    """
    own, everything = dict(own or {}), tables()
    known = everything[by_dtype.get(dtype, GENERIC["float32"])]
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
    try:
        entries = Entries.model_validate({"rows": read_object(file)})
    except ValidationError as error:
        wrong = misfit(file, error)
        raise InputError(file, wrong.field.removeprefix("rows."), wrong.found, wrong.expected) from error
    return {quantity: entry.row() for quantity, entry in entries.rows.items()}
