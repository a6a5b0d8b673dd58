"""Timings: their arithmetic on made-up numbers, and the order in which steps are taken."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from parity.timing import Steps, Timings, alternate, flop_counter


def test_each_step_counts_at_its_best() -> None:
    timings = Timings([[3.0, 5.0], [4.0, 2.0]], [[1.0, 1.0], [2.0, 0.5]], 0, 0)
    assert timings.best(timings.first) == 5.0
    assert timings.best(timings.second) == 1.5
    assert timings.best(timings.first, [1]) == 6.0
    assert timings.best(timings.first, [0, 0]) == 8.0
    assert timings.ratio == pytest.approx(5.0 / 1.5)


def test_without_noise_the_interval_is_a_point() -> None:
    timings = Timings([[2.0, 2.0]] * 5, [[1.0, 1.0]] * 5, 0, 0)
    assert timings.interval() == (2.0, 2.0)


def test_noise_widens_the_interval_around_the_ratio() -> None:
    noisy = Timings([[2.0 + 0.1 * i] for i in range(7)], [[1.0 + 0.05 * ((3 * i) % 7)] for i in range(7)], 0, 0)
    low, high = noisy.interval()
    assert low < noisy.ratio < high
    assert noisy.interval() == (low, high)


def recorder(name: str, log: list[str]) -> Steps:
    """A run that writes down when it starts and steps."""

    def start() -> Iterator[int]:
        log.append(f"{name} starts")
        for number in range(10):
            log.append(f"{name}{number}")
            yield number

    return start


def test_steps_alternate_and_the_order_swaps_every_round() -> None:
    log: list[str] = []
    timings = alternate(recorder("a", log), recorder("b", log), steps=2, rounds=3)
    warm_up, rounds = log[:6], log[6:]
    assert warm_up == ["a starts", "a0", "a1", "b starts", "b0", "b1"]
    forward = ["a starts", "a0", "b starts", "b0", "a1", "b1"]
    backward = ["b starts", "b0", "a starts", "a0", "b1", "a1"]
    assert rounds == forward + backward + forward
    assert [len(side) for side in (timings.first, timings.second)] == [3, 3]
    assert all(len(taken) == 2 for taken in timings.first + timings.second)


def busy(seconds: float) -> Steps:
    """Steps that burn CPU time."""

    def start() -> Iterator[int]:
        number = 0
        while True:
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass
            yield number
            number += 1

    return start


def test_the_slower_side_is_measured_slower() -> None:
    timings = alternate(busy(0.02), busy(0.01), steps=2, rounds=2)
    assert timings.best(timings.first) >= 0.04
    assert timings.ratio == pytest.approx(2.0, rel=0.2)


def test_sleep_is_not_time() -> None:
    def start() -> Iterator[int]:
        while True:
            time.sleep(0.05)
            yield 0

    timings = alternate(start, busy(0.005), steps=1, rounds=2)
    assert timings.ratio < 1


def products(count: int) -> Steps:
    """``count`` products [4, 5] x [5, 6] a step."""

    def start() -> Iterator[int]:
        while True:
            for _ in range(count):
                torch.ones(4, 5) @ torch.ones(5, 6)
            yield 0

    return start


def test_flops_of_all_steps_are_counted() -> None:
    timings = alternate(products(1), products(3), steps=2, rounds=1)
    assert timings.first_flops == 2 * 2 * 4 * 5 * 6
    assert timings.second_flops == 3 * timings.first_flops


def test_products_that_add_in_place_are_counted() -> None:
    total, first, second = torch.zeros(4, 6), torch.ones(4, 5), torch.ones(5, 6)
    with flop_counter() as counter:
        total.addmm_(first, second, beta=0.5)
        total.expand(3, 4, 6).clone().baddbmm_(first.expand(3, 4, 5), second.expand(3, 5, 6))
    assert counter.get_total_flops() == (1 + 3) * 2 * 4 * 5 * 6
