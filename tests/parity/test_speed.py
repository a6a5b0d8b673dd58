"""Timings: their arithmetic on made-up numbers, the order in which steps are taken, and both gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.compare import Subject
from parity.errors import InputError
from parity.speed import (
    Steps,
    Times,
    alternate,
    baseline_row,
    flop_counter,
    interval,
    ratio,
    read_baseline,
    save_baseline,
)
from parity.tolerances import HELD
from parity.verdict import Status

ALLOWED = HELD["throughput"]
SUBJECT = Subject("throughput", "case", "port")


def times(seconds: Any) -> Times:
    return Times({"CPU": seconds, "wall": seconds})


def test_each_step_counts_at_its_best() -> None:
    first, second = times([[3.0, 5.0], [4.0, 2.0]]), times([[1.0, 1.0], [2.0, 0.5]])
    assert (first.best("CPU"), second.best("CPU"), first.best("CPU", [1])) == (5.0, 1.5, 6.0)
    assert ratio(first, second) == pytest.approx(5.0 / 1.5)
    assert first.per_step("CPU") == (4.0, 3.0)


def test_the_interval_is_a_point_without_noise_and_wider_with_it() -> None:
    assert interval(times([[2.0, 2.0]] * 5), times([[1.0, 1.0]] * 5)) == (2.0, 2.0)
    noisy = times([[2.0 + 0.1 * i] for i in range(7)]), times([[1.0 + 0.05 * ((3 * i) % 7)] for i in range(7)])
    low, high = interval(*noisy)
    assert low < ratio(*noisy) < high
    assert interval(*noisy) == (low, high)


def test_steps_alternate_and_the_order_turns_every_round() -> None:
    log: list[str] = []

    def recorder(name: str) -> Steps:
        return lambda: (log.append(f"{name}{number}") for number in range(10))

    taken = alternate({"a": recorder("a"), "b": recorder("b")}, steps=2, rounds=3)
    there, back = ["a0", "b0", "a1", "b1"], ["b0", "a0", "b1", "a1"]
    assert log == ["a0", "a1", "b0", "b1", *there, *back, *there]
    assert {(len(rows), len(rows[0])) for side in taken.values() for rows in side.seconds.values()} == {(3, 2)}


@pytest.mark.parametrize(
    ("port", "stored", "status", "said"),
    [
        (2.0, {"case": 2.0}, Status.PASSED, "2.00 yardsticks a step"),
        (2.19, {"case": 2.0}, Status.PASSED, "2.00 in"),
        (2.5, {"case": 2.0}, Status.FAILED, "2.50 yardsticks a step"),
        (1.7, {"case": 2.0}, Status.PASSED, "stale, save the baseline anew: 1.18 times as fast"),
        (2.0, {"other": 2.0}, Status.NOT_APPLICABLE, "has no figure for this case: parity run --save-baseline"),
        (2.0, None, Status.NOT_APPLICABLE, "no baseline: parity run --save-baseline"),
    ],
)
def test_gate_two_holds_the_port_against_its_baseline(
    port: float, stored: dict[str, float] | None, status: Status, said: str, tmp_path: Path
) -> None:
    baseline = None
    if stored is not None:
        save_baseline(tmp_path / "baseline.json", stored)
        baseline = read_baseline(tmp_path / "baseline.json")
    row = baseline_row(SUBJECT, times([[port, port]]), times([[1.0, 1.0]]), baseline, ALLOWED)
    assert row.status is status
    assert said in row.detail


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "file"),
        ('{"format_version": 2, "cpu_over_yardstick": {}}', "format_version"),
        ('{"format_version": 1, "cpu_over_yardstick": {"case": -1}}', "cpu_over_yardstick.case"),
        ('{"format_version": 1, "cpu_over_yardstick": {"case": "fast"}}', "cpu_over_yardstick.case"),
        ('{"format_version": 1}', "cpu_over_yardstick"),
    ],
)
def test_a_damaged_baseline_is_refused(text: str, field: str, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(InputError, match=f"baseline.json: {field}: found"):
        read_baseline(file)


def test_products_are_counted_also_those_that_add_in_place() -> None:
    def products() -> Iterator[Any]:
        while True:
            yield torch.ones(4, 5) @ torch.ones(5, 6)

    assert alternate({"side": products}, steps=2, rounds=1)["side"].flops == 2 * 2 * 4 * 5 * 6
    total, first, second = torch.zeros(4, 6), torch.ones(4, 5), torch.ones(5, 6)
    with flop_counter() as counter:
        total.addmm_(first, second, beta=0.5)
        total.expand(3, 4, 6).clone().baddbmm_(first.expand(3, 4, 5), second.expand(3, 5, 6))
    assert counter.get_total_flops() == (1 + 3) * 2 * 4 * 5 * 6
