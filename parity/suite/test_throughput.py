"""The port is not slower than the prototype; the final losses in bfloat16 are equivalent over seeds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from parity.plugin import recordings_of
from parity.prototypes.algorithms import ALGORITHMS
from parity.prototypes.case import find_cases
from parity.prototypes.speed import measure, measure_live, speed_case
from parity.prototypes.spread import judge_spread, measure_spread


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_throughput_against_the_reference(algorithm: str, compared: list[Any]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("other workers take the cores: run it with -n 0, or parity run")
    with speed_case(algorithm) as case:
        rows = measure(case).rows(case)
    compared += rows
    assert [row.status.value for row in rows] == ["passed", "passed", "not applicable"], rows


@pytest.mark.prototype
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_throughput_against_the_original(algorithm: str, prototype_dir: Path, compared: list[Any]) -> None:
    with speed_case(algorithm) as case:
        rows = measure_live(case, prototype_dir).rows(case)
    compared += rows
    assert all(row.passed for row in rows), rows


def test_bf16_final_losses_are_equivalent(compared: list[Any], pytestconfig: Any) -> None:
    cases = [case for case in find_cases(recordings_of(pytestconfig)) if case.dtype != "fp32"]
    if not cases:
        pytest.skip("these recordings have no case in bfloat16")
    for case in cases:
        row = judge_spread(case, measure_spread(case))
        compared.append(row)
        assert row.passed, row.detail
