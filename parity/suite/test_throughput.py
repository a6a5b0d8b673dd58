"""The port is not slower than the prototype; the final losses in bfloat16 are equivalent over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parity.case import find_cases
from parity.plugin import recordings_of
from parity.speed import judge_speed, live_timings, measure, speed_case
from parity.spread import judge_spread, measure_spread


def test_throughput_against_the_reference(compared: list[Any]) -> None:
    with speed_case() as case:
        row, speed = judge_speed(case, measure(case), "reference")
    compared.append(row)
    assert row.passed, row.detail
    assert speed.port_flops > 0


@pytest.mark.prototype
def test_throughput_against_the_original(prototype_dir: Path, compared: list[Any]) -> None:
    with speed_case() as case:
        row, _ = judge_speed(case, live_timings(case, prototype_dir), "original")
    compared.append(row)
    assert row.passed, row.detail


def test_bf16_final_losses_are_equivalent(compared: list[Any], pytestconfig: Any) -> None:
    cases = [case for case in find_cases(recordings_of(pytestconfig)) if case.dtype == "bf16ds"]
    for case in cases:
        row = judge_spread(case, measure_spread(case))
        compared.append(row)
        assert row.passed, row.detail
