"""Timings: their arithmetic on made-up numbers, the order in which steps are taken."""

import pytest
import torch

from parity.speed import Times, alternate, flop_counter, interval, ratio


def times(seconds):
    return Times({"CPU": seconds, "wall": seconds})


def test_each_step_counts_at_its_best():
    first, second = times([[3.0, 5.0], [4.0, 2.0]]), times([[1.0, 1.0], [2.0, 0.5]])
    assert (first.best("CPU"), second.best("CPU"), first.best("CPU", [1])) == (5.0, 1.5, 6.0)
    assert ratio(first, second) == pytest.approx(5.0 / 1.5)
    assert first.per_step("CPU") == (4.0, 3.0)


def test_the_interval_is_a_point_without_noise_and_wider_with_it():
    assert interval(times([[2.0, 2.0]] * 5), times([[1.0, 1.0]] * 5)) == (2.0, 2.0)
    noisy = times([[2.0 + 0.1 * i] for i in range(7)]), times([[1.0 + 0.05 * ((3 * i) % 7)] for i in range(7)])
    low, high = interval(*noisy)
    assert low < ratio(*noisy) < high
    assert interval(*noisy) == (low, high)


def test_steps_alternate_and_the_order_turns_every_round():
    log = []

    def recorder(name):
        return lambda: (log.append(f"{name}{number}") for number in range(10))

    taken = alternate({"a": recorder("a"), "b": recorder("b")}, steps=2, rounds=3)
    there, back = ["a0", "b0", "a1", "b1"], ["b0", "a0", "b1", "a1"]
    assert log == ["a0", "a1", "b0", "b1", *there, *back, *there]
    assert {(len(rows), len(rows[0])) for side in taken.values() for rows in side.seconds.values()} == {(3, 2)}


def test_products_are_counted_also_those_that_add_in_place():
    def products():
        while True:
            yield torch.ones(4, 5) @ torch.ones(5, 6)

    assert alternate({"side": products}, steps=2, rounds=1)["side"].flops == 2 * 2 * 4 * 5 * 6
    total, first, second = torch.zeros(4, 6), torch.ones(4, 5), torch.ones(5, 6)
    with flop_counter() as counter:
        total.addmm_(first, second, beta=0.5)
        total.expand(3, 4, 6).clone().baddbmm_(first.expand(3, 4, 5), second.expand(3, 5, 6))
    assert counter.get_total_flops() == (1 + 3) * 2 * 4 * 5 * 6
