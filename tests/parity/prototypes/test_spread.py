"""Equivalence over seeds, on made-up losses and on one short run."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity.prototypes.case import Case
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.spread import Spread, bf16_reference, final_loss, judge_spread, measure_spread
from parity.trace import Point, Trace
from tests.parity.prototypes.test_synthetic import Shape, make

PROTOTYPE = (4.0, 4.1, 3.9, 4.05, 3.95, 4.02)


def shifted(by: float, wiggle: float = 0.0) -> Spread:
    return Spread(PROTOTYPE, tuple(loss + by + wiggle * (-1) ** i for i, loss in enumerate(PROTOTYPE)))


def test_the_bound_is_the_prototype_s_own_spread(case: Case) -> None:
    assert shifted(0).bound == pytest.approx(statistics.stdev(PROTOTYPE))
    assert shifted(5).bound == shifted(0).bound


@pytest.mark.parametrize(("by", "wiggle"), [(0, 0), (0, 0.02), (0.01, 0.01), (-0.01, 0.01), (0.05, 0)])
def test_small_differences_are_equivalent(by: float, wiggle: float, case: Case) -> None:
    assert judge_spread(case, shifted(by, wiggle)).passed


@pytest.mark.parametrize(("by", "wiggle"), [(0.2, 0), (-0.2, 0), (0.08, 0), (0.06, 0.03), (0, 0.2)])
def test_bias_or_too_much_noise_is_not(by: float, wiggle: float, case: Case) -> None:
    row = judge_spread(case, shifted(by, wiggle))
    assert not row.passed
    assert row.check == "equivalence"
    assert "over 6 seeds" in row.detail


def test_the_reach_is_the_far_end_of_the_interval() -> None:
    """Of five differences 0, 0, 0, 0, 1: mean 0.2, standard error 0.2, Student's t at 95 % and 4 degrees 2.132."""
    spread = Spread((1.0,) * 5, (1.0, 1.0, 1.0, 1.0, 2.0))
    assert spread.reach == pytest.approx(0.2 + 2.1318 * 0.2, rel=1e-4)


def test_a_prototype_that_never_varies_proves_nothing(case: Case) -> None:
    row = judge_spread(case, Spread((4.0,) * 4, (4.0,) * 4))
    assert not row.passed
    assert row.measured == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_side_that_diverged_is_not_equivalent(value: float, case: Case) -> None:
    diverged = (value, *PROTOTYPE[1:])
    assert not judge_spread(case, Spread(PROTOTYPE, diverged)).passed
    assert not judge_spread(case, Spread(diverged, PROTOTYPE)).passed
    assert not judge_spread(case, Spread(diverged, diverged)).passed


def test_the_final_loss_is_the_mean_of_the_last_pass() -> None:
    point = Point(0, 9.0, (), None, 0, 0, 0, 0, (), True)
    curve = [point, *(replace(point, epoch=1, loss=loss) for loss in (1.0, 2.0))]
    assert final_loss(Trace("port", "one", "fp32", curve=curve)) == 1.5


def test_both_sides_run_under_every_seed(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path, k=1, bs=3, epoch=0)
    seeds: list[Any] = []

    def prototype(seeded: Case) -> Trace:
        seeds.append(seeded)
        return trace_reference(seeded)

    spread = measure_spread(case, prototype, seeds=(1, 2))
    assert [seeded.seed for seeded in seeds] == [1, 2]
    assert all(seeded.noise and seeded.shuffle for seeded in seeds)
    assert seeds[0].order != seeds[1].order
    assert spread.prototype[0] != spread.prototype[1]
    assert spread.port == pytest.approx(spread.prototype, rel=1e-5)


def test_the_prototype_in_half_precision_is_the_reference_in_it(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path, dtype="bf16ds", k=1, bs=3, epoch=0)
    half, single = bf16_reference(case).curve[0].loss, trace_reference(case).curve[0].loss
    assert half == pytest.approx(single, rel=0.05)
    assert half != single
