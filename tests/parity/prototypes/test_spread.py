"""Equivalence over seeds, on made-up losses and on one short run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import ports.hass.train
from parity.prototypes.case import Case
from parity.prototypes.spread import Losses, final_losses, judge_spread
from ports.training.settings import HassSettings
from tests.parity.prototypes.test_synthetic import Shape, make

PROTOTYPE = (4.0, 4.1, 3.9, 4.05, 3.95, 4.02)


@pytest.mark.parametrize(
    ("by", "wiggle", "passed"),
    [
        *[(0, 0, True), (0, 0.02, True), (0.01, 0.01, True), (-0.01, 0.01, True), (0.05, 0, True)],
        *[(0.2, 0, False), (-0.2, 0, False), (0.08, 0, False), (0.06, 0.03, False), (0, 0.2, False)],
    ],
)
def test_bias_or_too_much_noise_is_not_equivalent(by: float, wiggle: float, passed: bool, case: Case) -> None:
    row = judge_spread(case, PROTOTYPE, [loss + by + wiggle * (-1) ** i for i, loss in enumerate(PROTOTYPE)])
    assert (row.check, row.passed) == ("equivalence", passed)
    assert "over 6 seeds" in row.detail


def test_the_reach_is_the_far_end_of_the_interval(case: Case) -> None:
    """Of five differences 0, 0, 0, 0, 1: mean 0.2, standard error 0.2, Student's t at 95 % and 4 degrees 2.132."""
    row = judge_spread(case, (-2.0, -1.0, 0.0, 1.0, 2.0), (-2.0, -1.0, 0.0, 1.0, 3.0))
    assert row.measured == pytest.approx((0.2 + 2.1318 * 0.2) / math.sqrt(2.5), rel=1e-4)


EVEN, LOST, ENDLESS = (4.0,) * 6, (math.nan, *PROTOTYPE[1:]), (math.inf, *PROTOTYPE[1:])


@pytest.mark.parametrize(
    ("prototype", "port"), [(EVEN, EVEN), (PROTOTYPE, LOST), (PROTOTYPE, ENDLESS), (LOST, PROTOTYPE), (LOST, LOST)]
)
def test_no_spread_and_no_number_prove_nothing(prototype: Losses, port: Losses, case: Case) -> None:
    row = judge_spread(case, prototype, port)
    assert not row.passed
    assert row.measured == math.inf


def at(rate: float, settings: HassSettings) -> HassSettings:
    return settings.model_copy(update={"lr": rate * settings.lr})


@pytest.mark.parametrize(("rate", "passed"), [(1.0, True), (3.0, False)])
def test_both_sides_run_under_every_seed(
    rate: float, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, and with three times the rate."""
    case = make(Shape("any"), tmp_path, algorithm="hass", dtype="bf16", k=1, bs=3, epoch=3)
    start = ports.hass.train.start
    monkeypatch.setattr(ports.hass.train, "start", lambda settings, *rest: start(at(rate, settings), *rest))
    prototype, port = final_losses(case, seeds=(1, 2, 3))
    assert len(set(prototype)) == len(set(port)) == 3
    assert judge_spread(case, prototype, port).passed is passed
