"""Which dialogues run through the verifier together."""

from __future__ import annotations

from collections.abc import Sequence


def length_buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first, each at most ``batch_tokens`` with its padding.

    A batch has at least one dialogue. The batches depend on nothing else, so that a run that was interrupted makes
    the same ones: sums in a matrix product may depend on what else is in it.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
