"""What is counted, and what follows from it."""

from ports.evaluate.counters import Counters


def test_a_position_counts_proposals_accepted_at_least_that_far():
    found = Counters.of([0, 3, 1, 1, 0, 2], size=3)
    assert found == Counters(drafts=6, accepted_per_position=(4, 2, 1))
    assert (found.proposed, found.accepted) == (18, 7)
    assert found.acceptance_length == 1 + 7 / 6
    assert found.rate_per_position == [4 / 6, 2 / 6, 1 / 6]


def test_without_proposals_a_pass_gives_one_token():
    found = Counters.of([], size=2)
    assert found == Counters(0, (0, 0))
    assert (found.acceptance_length, found.rate_per_position) == (1.0, [0.0, 0.0])
