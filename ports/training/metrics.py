"""What is logged at every micro-batch and printed after every pass, under the prototypes' names; what a pass takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import TypeVar

from torch import Tensor

from ports.training.loss import Hits

T = TypeVar("T")


def log_entry(lr: float, loss: float, hits: Hits, extra: dict[str, float] | None = None) -> dict[str, float]:
    """The prototypes' per-batch dict, empty where no row is in the loss; ``lr`` is the scheduler's next."""
    rows = int(hits.rows)
    if rows == 0:
        return {}
    top = {f"train/top_{k + 1}_acc": int(count) / rows for k, count in enumerate(hits.top)}
    return {"train/lr": lr, **(extra or {}), "train/loss": loss, "train/acc": int(hits.correct) / rows, **top}


@dataclass
class PassTotals:
    """Sums over one pass on one process, or on all.

    ``skipped`` counts bad records, ``empty`` those without a row in the loss.
    """

    loss: float = 0.0
    batches: int = 0
    correct: int = 0
    rows: int = 0
    skipped: int = 0
    empty: int = 0

    @classmethod
    def together(cls, processes: Iterable[PassTotals]) -> PassTotals:
        """The sums of several processes."""
        return cls(*map(sum, zip(*map(astuple, processes))))

    def add(self, loss: float, hits: Hits) -> None:
        self.loss += loss
        self.batches += 1
        self.correct += int(hits.correct)
        self.rows += int(hits.rows)

    @property
    def mean(self) -> float:
        """Mean loss over the batches; NaN without any."""
        return self.loss / self.batches if self.batches else float("nan")

    def lines(self, epoch: int, last_epoch: int) -> list[str]:
        """The prototypes' two lines, and a third if records were skipped.

        ``last_epoch`` is ``--epoch``, so the last pass reads one past it.
        """
        accuracy = 100 * self.correct / self.rows if self.rows else 0.0
        skipped = [f"Skipped {self.skipped} bad records"] if self.skipped else []
        return [
            f"Epoch [{epoch + 1}/{last_epoch}], Loss: {self.mean:.4f}",
            f"Train Accuracy: {accuracy:.2f}%",
            *skipped,
        ]


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
