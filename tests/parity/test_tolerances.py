"""The table: every row has a bound, a reason, and a floor below it that says where it was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.tolerances import Kind, Tolerance, read_tolerances, table_for, tables

ROWS = [(name, quantity, row) for name, table in tables().items() for quantity, row in table.items()]
FLOAT32, FLOAT64 = tables()["float32"], tables()["float64"]


@pytest.mark.parametrize(("table", "quantity", "row"), ROWS, ids=[f"{name}-{quantity}" for name, quantity, _ in ROWS])
def test_floors_lie_below_bounds(table: str, quantity: str, row: Tolerance) -> None:
    assert row.reason
    assert (row.kind is Kind.EQUAL) == (row.bound == 0)
    assert row.floor is None or 0 <= row.floor <= row.bound
    assert (row.floor is None) == (not row.machine)
    assert row.floor is not None or row.kind in (Kind.EQUAL, Kind.RATIO)


def test_float64_is_never_looser_than_float32() -> None:
    assert FLOAT64.keys() == FLOAT32.keys()
    assert all(FLOAT64[quantity].bound <= row.bound for quantity, row in FLOAT32.items())


def test_a_user_s_rows_take_the_places_of_the_defaults() -> None:
    own = {"out": Tolerance(Kind.ABSOLUTE, 1.0, None, "coarse")}
    assert table_for("float32", own) == {**FLOAT32, **own}
    assert table_for("fp32", own, {"fp32": "prototype_fp32"}) == {**tables()["prototype_fp32"], **own}


def test_a_dtype_without_a_table_needs_every_row_that_rounding_reaches() -> None:
    rows = {name: FLOAT32[name] for name in ("out", "loss", "path", "grad", "grad_norm", "after", "final", "curve")}
    assert table_for("bfloat16", rows).keys() == FLOAT32.keys()
    del rows["grad"]
    with pytest.raises(InputError, match="found bfloat16, expected tolerances for grad:"):
        table_for("bfloat16", rows)


def test_a_file_of_rows_is_read(tmp_path: Path) -> None:
    row = {"kind": "OF_MAX", "bound": 1, "reason": "coarse"}
    (tmp_path / "own.json").write_text(json.dumps({"out": row}))
    assert read_tolerances(tmp_path / "own.json") == {"out": Tolerance(Kind.OF_MAX, 1.0, None, "coarse")}
    for field, value in (("kind", "LOOSE"), ("bound", "1"), ("bound", True), ("reason", " "), ("bounds", 1)):
        (tmp_path / "own.json").write_text(json.dumps({"out": {**row, field: value}}))
        with pytest.raises(InputError, match=rf"own.json: out.{field}: found"):
            read_tolerances(tmp_path / "own.json")
