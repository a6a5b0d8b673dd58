"""Intervals hold what they promise, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ports.evaluate.intervals import ratio


def test_a_ratio_of_sums_and_what_a_single_prompt_tells():
    assert ratio([2, 4], [4, 4]).value == 0.75
    assert ratio([2], [4]).high == math.inf
    assert ratio([0, 0], [0, 0]).value == 0.0


def test_it_is_told_in_as_many_digits_as_are_asked_for():
    estimate = ratio([1, 2, 3], [4, 4, 4])
    assert f"{estimate}" == str(estimate) == "0.500 [-0.121, 1.121]"
    assert f"{estimate:.1f}" == "0.5 ±0.6"


@pytest.mark.parametrize(("prompts", "least"), [(16, 0.90), (64, 0.93), (256, 0.93)])
def test_nineteen_of_twenty_hold_the_truth(prompts, least):
    """Prompts differ in length and in what is accepted of them, as real ones do; 2,000 draws."""
    draws = np.random.default_rng(0)
    proposals = draws.integers(5, 60, size=(2000, prompts))
    rates = draws.beta(2, 3, size=(2000, prompts))
    accepted, truth = draws.binomial(3 * proposals, rates), 3 * 0.4
    found = [ratio(*pair) for pair in zip(accepted, proposals)]
    share = np.mean([each.low <= truth <= each.high for each in found])
    assert least <= share <= 0.97
