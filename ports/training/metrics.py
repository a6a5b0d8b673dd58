"""What is logged at every micro-batch and printed after every pass, under the prototypes' names; what a pass takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from operator import mul
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ports.numerics import wide_dtype

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""Larger numbers count nothing, and some of what reads them overflows."""


class Strict(BaseModel):
    """What is read from a checkpoint: no other fields, no converted types."""

    model_config = ConfigDict(extra="forbid", strict=True)


def fetch(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Numbers, and lists of them, from tensors on one device: the only time that the host waits for a step.

    Their values are kept to the bit, whole ones on a device without float64 up to 2^24.
    """
    flat = [value.detach().flatten() for value in tensors.values()]
    numbers = iter(torch.cat([value.to(wide_dtype(value.device)) for value in flat]).tolist())
    found = ([*islice(numbers, len(value))] for value in flat)
    whole = (values if each.is_floating_point() else [*map(int, values)] for each, values in zip(flat, found))
    return {name: values if value.dim() else values[0] for (name, value), values in zip(tensors.items(), whole)}


def log_entry(lr: float, told: Mapping[str, Any]) -> dict[str, float]:
    """The prototypes' per-batch dict, empty where no row is in the loss; ``lr`` is the scheduler's next.

    ``told`` are numbers: ``loss``, the :class:`ports.training.loss.Hits`, and under their names some more.
    """
    rows = told["rows"]
    if rows == 0:
        return {}
    top = {f"train/top_{k + 1}_acc": count / rows for k, count in enumerate(told["top"])}
    more = {name: value for name, value in told.items() if name.startswith("train/")}
    return {"train/lr": lr, **more, "train/loss": told["loss"], "train/acc": told["correct"] / rows, **top}


@dataclass(frozen=True)
class Acceptance:
    """A draft after ``steps`` optimizer steps, in pass ``epoch``, on held-out records.

    ``loss`` is the mean, ``accuracies`` a_1 .. a_k those of tokens whose chain came so far; 0 where none did.
    """

    steps: int
    epoch: int
    loss: float
    accuracies: list[float]

    @property
    def expected(self) -> float:
        """Tokens that one pass of the verifier gives: 1 + a_1 + a_1 a_2 + ..."""
        return 1.0 + sum(accumulate(self.accuracies, mul))


class PassTotals(Strict):
    """Sums over one pass on one process, or on all.

    ``skipped`` counts bad records, ``empty`` those without a row in the loss.
    """

    loss: float = 0.0
    batches: Count = 0
    correct: Count = 0
    rows: Count = 0
    skipped: Count = 0
    empty: Count = 0

    @classmethod
    def together(cls, processes: Iterable[PassTotals]) -> PassTotals:
        """The sums of several processes."""
        counts = [each.model_dump() for each in processes]
        return cls(**{name: sum(count[name] for count in counts) for name in cls.model_fields})

    def add(self, loss: float, correct: int, rows: int) -> None:
        self.loss += loss
        self.batches += 1
        self.correct += correct
        self.rows += rows

    @property
    def mean(self) -> float:
        """Mean loss over the batches; NaN without any."""
        return self.loss / self.batches if self.batches else float("nan")

    def lines(self, epoch: int, last_epoch: int) -> list[str]:
        """The prototypes' two lines, and a third if records were skipped.

        ``last_epoch`` may be the prototypes' ``--epoch``: the last pass then reads one past it.
        """
        accuracy = 100 * self.correct / self.rows if self.rows else 0.0
        lines = [f"Epoch [{epoch + 1}/{last_epoch}], Loss: {self.mean:.4f}", f"Train Accuracy: {accuracy:.2f}%"]
        return lines + ([f"Skipped {self.skipped} bad records"] if self.skipped else [])


class PassClock:
    """What a pass takes on one process, or what is left of it after a resume; started when the pass starts."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0
        self._places: int = 0
        self._tokens: int | Tensor = 0

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each of them, and until there is none, is waiting."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield batch

    def count(self, mask: Tensor) -> None:
        """Take note of a batch's attention mask [B, T]; does not wait for its device."""
        self._places += mask.numel()
        self._tokens = self._tokens + mask.sum()

    def read(self) -> dict[str, float]:
        """Seconds so far, those of them waited for batches, and the share of places that hold no token."""
        padding = 1 - int(self._tokens) / self._places if self._places else 0.0
        seconds = time.perf_counter() - self._started
        return {"pass/seconds": seconds, "pass/data_wait": self._waited, "pass/padding": padding}


def times_line(times: dict[str, float]) -> str:
    """What :meth:`PassClock.read` gave, for the terminal."""
    seconds, waited, padding = times.values()
    share = waited / seconds if seconds else 0.0
    return f"Data wait: {waited:.1f} s of {seconds:.1f} s ({100 * share:.1f}%), padding {100 * padding:.1f}%"
