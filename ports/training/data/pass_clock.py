"""How long a pass takes, how long it waits for data, and how much of its batches is padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class PassTimes:
    """Of one pass on one process, or of what was left of it after a resume.

    ``seconds`` of wall-clock time, ``waited`` of them for the next batch; ``padding`` is the share of the batches'
    places that hold no token.
    """

    seconds: float
    waited: float
    padding: float

    def line(self) -> str:
        """For the terminal."""
        share = self.waited / self.seconds if self.seconds else 0.0
        return (
            f"Data wait: {self.waited:.1f} s of {self.seconds:.1f} s ({100 * share:.1f}%), "
            f"padding {100 * self.padding:.1f}%"
        )

    def logged(self) -> dict[str, float]:
        """For the trackers."""
        return {"pass/seconds": self.seconds, "pass/data_wait": self.waited, "pass/padding": self.padding}


class PassClock:
    """Started when the pass starts."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._started, self._waited = now, now(), 0.0
        self._places: int = 0
        self._tokens: int | Tensor = 0

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each of them, and until there is none, is waiting."""
        while True:
            asked = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += self._now() - asked
            yield batch

    def count(self, mask: Tensor) -> None:
        """Take note of a batch's attention mask [B, T]; does not wait for its device."""
        self._places += mask.numel()
        self._tokens = self._tokens + mask.sum()

    def read(self) -> PassTimes:
        """The pass so far."""
        padding = 1 - int(self._tokens) / self._places if self._places else 0.0
        return PassTimes(self._now() - self._started, self._waited, padding)
