"""The tables: every quantity a check asks for is in each of them, and no bound lies below its floor."""

from __future__ import annotations

import pytest

import parity.checks.evidence
from parity import fixtures
from parity.case import read_case
from parity.checks import run_checks
from parity.judge import PORT
from parity.runs.recorded import load_recorded
from parity.tolerances import BF16, FLOOR_RUN, FLOORS_FP32, PORT_FP32, Kind, Tolerance, tolerance

ONLY_BF16 = {"error_ratio", "loss_error"}
TABLES = {"port": PORT_FP32, "floor": FLOORS_FP32, "bf16": BF16}
ROWS = [(name, quantity, row) for name, table in TABLES.items() for quantity, row in table.items()]


@pytest.fixture(scope="module")
def asked_for() -> set[str]:
    """Every quantity that the checks look up while all of them run."""
    asked: set[str] = set()

    def note(run: str, dtype: str, quantity: str) -> Tolerance:
        asked.add(quantity)
        return tolerance(run, dtype, quantity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity.checks.evidence, "tolerance", note)
        for name in ("eagle3_fp32_k3", "eagle3_bf16ds_k3"):
            case = read_case(fixtures.RECORDINGS / name)
            with PORT.evidence(case, load_recorded(case)) as evidence:
                run_checks(evidence)
    return asked


def test_the_checks_ask_for_quantities(asked_for: set[str]) -> None:
    assert asked_for >= {"batch", "logits", "loss", "grad", "after", "lr", "hits", "path", "round_trip", "final"}


def test_every_quantity_asked_for_is_in_every_table(asked_for: set[str]) -> None:
    """But those that only bfloat16 is judged by."""
    assert asked_for <= BF16.keys()
    assert asked_for - ONLY_BF16 <= PORT_FP32.keys() & FLOORS_FP32.keys()


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
