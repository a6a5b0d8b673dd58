"""The tables: every quantity a check asks for is in each of them, and no bound lies below its floor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import parity.checks
from parity.tolerances import BF16, FLOOR_RUN, FLOORS_FP32, PORT_FP32, Kind, Tolerance, tolerance

TABLES = {"port": PORT_FP32, "floor": FLOORS_FP32, "bf16": BF16}
ROWS = [(name, quantity, row) for name, table in TABLES.items() for quantity, row in table.items()]


def asked_for() -> set[str]:
    """Quantities named in the checks' own text."""
    text = "\n".join(file.read_text() for file in Path(parity.checks.__file__).parent.glob("*.py"))
    series = re.search(r"SERIES.*?\n}", text, re.DOTALL)
    assert series
    named = re.findall(r"""tolerance\("(\w+)"\)""", text) + re.findall(r""": \("(\w+)",""", series[0])
    named += re.findall(r"""_named\(evidence, "\w+", "(\w+)",""", text)
    return set(named)


def test_the_search_finds_quantities() -> None:
    assert asked_for() >= {"batch", "logits", "loss", "grad", "after", "lr", "hits", "path", "round_trip", "final"}


@pytest.mark.parametrize("table", ["port", "floor", "bf16"])
def test_every_quantity_is_in_every_table(table: str) -> None:
    only_bf16 = {"error_ratio"} - TABLES[table].keys() if table != "bf16" else set()
    assert asked_for() - only_bf16 <= TABLES[table].keys()


@pytest.mark.parametrize(("table", "quantity", "row"), ROWS, ids=[f"{name}-{quantity}" for name, quantity, _ in ROWS])
def test_floors_lie_below_bounds(table: str, quantity: str, row: Tolerance) -> None:
    assert row.reason
    assert row.floor is not None
    assert 0 <= row.floor <= row.bound
    assert (row.kind is Kind.EQUAL) == (row.bound == 0)


def test_the_reference_is_held_to_tighter_bounds_than_a_port() -> None:
    assert all(FLOORS_FP32[quantity].bound <= row.bound for quantity, row in PORT_FP32.items())
    assert FLOORS_FP32["logits"].bound < PORT_FP32["logits"].bound


def test_rows_are_chosen_by_run_and_precision() -> None:
    assert tolerance("port", "fp32", "grad") is PORT_FP32["grad"]
    assert tolerance("reference", "fp32", "grad") is PORT_FP32["grad"]
    assert tolerance(FLOOR_RUN, "fp32", "grad") is FLOORS_FP32["grad"]
    assert tolerance(FLOOR_RUN, "bf16ds", "path") is BF16["path"]
    assert tolerance("port", "bf16", "path") is BF16["path"]
    with pytest.raises(KeyError):
        tolerance("port", "fp32", "no such quantity")
