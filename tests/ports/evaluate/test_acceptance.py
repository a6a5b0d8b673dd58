"""Counts of a prompt are possible ones, of all of its turns, and its dialogue is one of the figures' prompts."""

import json

import pytest

from ports.evaluate.acceptance import Counted, Turn, by_context, figures, in_json
from ports.evaluate.decode import Answer
from ports.evaluate.prompts import Prompt


def turn(number, accepted, ids=(1,)):
    return Turn(0, 0, number, Prompt(list(ids)), Answer([1, 2], accepted))


def test_the_turns_of_a_dialogue_are_counted_together():
    found = Counted.of([turn(0, [2, 0]), turn(1, [1])], 2)
    assert (found.drafts, found.accepted_per_position, found.tokens) == (3, (2, 1), 4)
    assert found.key == Counted.of([turn(0, [0]), turn(1, [], [7])], 2).key != Counted.of([turn(0, [0], [2])], 2).key


def test_a_single_prompt_has_figures_and_no_interval():
    told = in_json(figures([Counted.of([turn(0, [1, 0])], 1)], 1))
    assert json.loads(json.dumps(told, allow_nan=False))["acceptance_length"] == {
        "value": 1.5,
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize("accepted", [(1, 2), (4, 0)])
def test_more_cannot_be_accepted_further_on(accepted):
    with pytest.raises(ValueError, match="more accepted further on"):
        Counted(prompt=0, key="", tokens=1, drafts=3, accepted_per_position=accepted)


def test_turns_of_a_dialogue_are_one_prompt_of_a_context():
    answers = [Answer([1], [1, 0]), Answer([1], [1, 1]), Answer([1], [0])]
    apart, together = (by_context([[1]] * 3, answers, each)["under 512"] for each in (None, "aab"))
    assert apart.value == together.value == 1.6
    assert together.high - together.low > apart.high - apart.low
