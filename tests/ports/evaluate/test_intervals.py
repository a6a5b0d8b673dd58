"""Intervals hold what they promise, by simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ports.evaluate.intervals import ratio

REAL = json.loads(Path(__file__).with_name("counts.json").read_text())
"""Of every prompt proposals and what was accepted of them by position; see counts.py."""


def test_a_ratio_of_sums_and_what_a_single_prompt_tells():
    assert ratio([2, 4], [4, 4]).value == 0.75
    assert ratio([2], [4]).high == math.inf
    assert ratio([0, 0], [0, 0]).value == 0.0


def test_it_is_told_in_as_many_digits_as_are_asked_for():
    estimate = ratio([1, 2, 3], [4, 4, 4])
    assert f"{estimate}" == str(estimate) == "0.500 [-0.121, 1.121]"
    assert f"{estimate:.1f}" == "0.5 ±0.6"


def coverage(entries, position, prompts, interval_of):
    """Of 2,000 samples of so many prompts, the share whose interval holds what all of the prompts give."""
    drafts, accepted = np.array(entries)[:, 0], np.array(entries)[:, position:].T[0]
    samples = np.random.default_rng(0).integers(len(entries), size=(2000, prompts))
    found = [interval_of(accepted[places], drafts[places]) for places in samples]
    truth = accepted.sum() / drafts.sum()
    return np.mean([low <= truth <= high for low, high in found])


def over_prompts(accepted, drafts):
    found = ratio(accepted, drafts)
    return found.low, found.high


def over_proposals(accepted, drafts):
    """As if those of a prompt had nothing to do with each other."""
    share = accepted.sum() / drafts.sum()
    half = 1.96 * math.sqrt(share * (1 - share) / drafts.sum())
    return share - half, share + half


@pytest.mark.parametrize(("prompts", "least"), [(16, 0.90), (64, 0.93), (256, 0.93)])
def test_nineteen_of_twenty_hold_the_truth(prompts, least):
    """Real prompts, drawn from the 256 of counts.json; intervals over proposals hold it less often."""
    for entries in (REAL["after 2 passes"], REAL["after 5 passes"]):
        lengths = [[row[0], sum(row[1:])] for row in entries]
        assert least <= coverage(lengths, 1, prompts, over_prompts) <= 0.97
        assert least <= coverage(entries, 1, prompts, over_prompts) <= 0.97
        assert coverage(entries, 1, prompts, over_proposals) < 0.93
