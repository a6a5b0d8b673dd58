from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ports.generate.run import length_buckets

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 1000))
def test_every_dialogue_is_in_one_bucket_that_fits(lengths, batch_tokens) -> None:
    buckets = length_buckets(lengths, batch_tokens)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        assert len(bucket) == 1 or len(bucket) * max(lengths[index] for index in bucket) <= batch_tokens


@given(LENGTHS, st.integers(1, 1000))
def test_the_longest_come_first(lengths, batch_tokens) -> None:
    order = [lengths[index] for bucket in length_buckets(lengths, batch_tokens) for index in bucket]
    assert order == sorted(lengths, reverse=True)


def test_equal_lengths_keep_their_order() -> None:
    assert length_buckets([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]
