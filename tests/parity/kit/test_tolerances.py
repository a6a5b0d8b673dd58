"""The kit's tables: a bound above the floor and a reason for every quantity; a user's rows take their places."""

from __future__ import annotations

import pytest

from parity.errors import InputError
from parity.kit.tolerances import FLOAT32, FLOAT64, table_for
from parity.tolerances import Kind, Tolerance


@pytest.mark.parametrize("table", [FLOAT32, FLOAT64], ids=["float32", "float64"])
def test_every_bound_is_above_its_floor_and_has_a_reason(table: dict[str, Tolerance]) -> None:
    assert table.keys() == FLOAT32.keys()
    for quantity, row in table.items():
        assert row.reason, quantity
        assert row.floor is None or row.floor < row.bound or row.kind is Kind.EQUAL, quantity


def test_float64_is_never_looser_than_float32() -> None:
    assert all(FLOAT64[quantity].bound <= row.bound for quantity, row in FLOAT32.items())


def test_a_user_s_rows_take_the_places_of_the_defaults() -> None:
    own = {"out": Tolerance(Kind.ABSOLUTE, 1.0, None, "coarse")}
    assert table_for("float32", own) == {**FLOAT32, **own}


def test_a_dtype_without_a_table_needs_every_row_that_rounding_reaches() -> None:
    rows = {name: FLOAT32[name] for name in ("out", "loss", "path", "grad", "grad_norm", "after", "final", "curve")}
    assert table_for("bfloat16", rows).keys() == FLOAT32.keys()
    del rows["grad"]
    with pytest.raises(InputError, match="found bfloat16, expected tolerances for grad:"):
        table_for("bfloat16", rows)
