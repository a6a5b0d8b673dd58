"""An order of the samples in which every batch holds samples of about one length, so that little is padded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from torch.utils.data import Sampler

POOL = 64
"""Batches that are sorted together: more would pad less, and leave less to chance."""


class LengthGroupedSampler(Sampler[int]):
    """A pass over all samples: shuffled, sorted by length within pools of batches, and the batches shuffled.

    The order depends on the seed and the number of the pass alone, so that every process draws the same one and a
    resumed run draws it again; accelerate's loader calls :meth:`set_epoch`. The samples that fill no batch come last,
    where the loader drops them: which they are is drawn before anything is sorted.

    Args:
        sizes: one number a sample that grows with its length.
        batch_size: samples of a batch.
        seed: of the run.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, seed: int) -> None:
        self.sizes, self.batch_size, self.seed, self.epoch = sizes, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The number of the pass that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"seed {self.seed}, pass {self.epoch}")
        drawn = list(range(len(self.sizes)))
        generator.shuffle(drawn)
        whole = len(drawn) - len(drawn) % self.batch_size
        batches = list(_batches(drawn[:whole], self.sizes, self.batch_size))
        generator.shuffle(batches)
        yield from chain.from_iterable(batches)
        yield from drawn[whole:]


def _batches(order: list[int], sizes: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Pools of the order, sorted by size and cut into batches; equal sizes stay in their order."""
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda index: sizes[index])
        yield from (pool[first : first + batch_size] for first in range(0, len(pool), batch_size))


def record_sizes(files: Iterable[Path]) -> list[int]:
    """Bytes on the disk, which grow with a record's tokens; 0 for a file that cannot be read (the loader says why)."""
    return [_size(file) for file in files]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
