"""The table: every row has a bound, a reason, and a floor below it that says where it was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.tolerances import Kind, Tolerance, read_tolerances, table_for, tables

FLOAT32, FLOAT64 = tables()["float32"], tables()["float64"]


@pytest.mark.parametrize("name", tables())
def test_floors_lie_below_bounds(name: str) -> None:
    for quantity, row in tables()[name].items():
        assert (row.kind is Kind.EQUAL) == (row.bound == 0), quantity
        assert (row.floor is None) == (not row.machine), quantity
        assert row.kind in (Kind.EQUAL, Kind.RATIO) if row.floor is None else row.floor <= row.bound, quantity


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"kind": "LOOSE"}, "out.kind: found 'LOOSE', expected .*one of EQUAL, ABSOLUTE"),
        ({"kind": []}, "out.kind: found"),
        ({"bound": "1"}, "out.bound: found '1'"),
        ({"bound": True}, "out.bound: found True"),
        ({"bound": -1}, "out.bound: found -1"),
        ({"bound": float("nan")}, "out.bound: found nan"),
        ({"reason": " "}, "out.reason: found ' '"),
        ({"bounds": 1}, "out.bounds: found 1"),
    ],
)
def test_a_file_of_rows_is_read(change: dict[str, object], message: str, tmp_path: Path) -> None:
    file, row = tmp_path / "own.json", {"kind": "OF_MAX", "bound": 1, "reason": "coarse"}
    file.write_text(json.dumps({"out": {**row, **change}}))
    if not message:
        assert read_tolerances(file) == {"out": Tolerance(Kind.OF_MAX, 1.0, None, "coarse")}
        return
    with pytest.raises(InputError, match=rf"own.json: {message}"):
        read_tolerances(file)
