"""Stands where the script's progress bar is: sees every micro-batch begin and end, and keeps time."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Protocol

import torch

from parity.speed import flop_counter


class StepLimitError(Exception):
    """Raised inside the loop when the requested number of optimizer steps has been made."""


class Listener(Protocol):
    """What wants to know about micro-batches."""

    def begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        """A micro-batch enters the loop."""

    def end(self, names: dict[str, Any], synced: bool) -> None:
        """It is done; ``names`` are the caller's local names, ``synced`` says whether the optimizer moved."""


class StepClock:
    """Wall seconds, CPU seconds of all threads and tokens of every optimizer step, without loading its batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.tokens: list[int] = []
        self._reset()
        self._since = (0.0, 0.0)

    def start(self) -> None:
        """A micro-batch begins."""
        self._since = (time.monotonic(), time.process_time())

    def stop(self, tokens: int, complete: bool) -> None:
        """It has ended, and with ``complete`` the optimizer step as well."""
        self._wall += time.monotonic() - self._since[0]
        self._cpu += time.process_time() - self._since[1]
        self._tokens += tokens
        if complete:
            self.seconds.append(self._wall)
            self.cpu_seconds.append(self._cpu)
            self.tokens.append(self._tokens)
            self._reset()

    def _reset(self) -> None:
        self._wall, self._cpu, self._tokens = 0.0, 0.0, 0


class FirstStepFlops:
    """Matrix-product FLOPs of the first optimizer step, forward and backward."""

    def __init__(self, wanted: bool) -> None:
        self._counter: Any = flop_counter() if wanted else None
        self._active = False
        self.total: int | None = None

    def start(self) -> None:
        """A micro-batch begins."""
        if self._counter is not None and self.total is None:
            self._counter.__enter__()
            self._active = True

    def stop(self, complete: bool) -> None:
        """It has ended, and with ``complete`` the optimizer step as well."""
        if self._counter is None or not self._active:
            return
        self._counter.__exit__(None, None, None)
        self._active = False
        if complete:
            self.total = self._counter.get_total_flops()


class LoopWatch:
    """Replaces ``tqdm`` in the script; iterating yields the loader's batches unchanged."""

    def __init__(self, listener: Listener | None, limit: int | None, count_flops: bool) -> None:
        self.clock = StepClock()
        self.flops = FirstStepFlops(count_flops)
        self.accelerator: Any = None
        self._listener = listener
        self._limit = limit
        self._epochs = 0

    def __call__(self, loader: Iterable[dict[str, torch.Tensor]], **_: Any) -> Iterator[dict[str, torch.Tensor]]:
        """One pass; nothing happens before the first batch is asked for, since the scripts also build a dead bar."""
        return self._iterate(loader)

    def _iterate(self, loader: Iterable[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        epoch, self._epochs = self._epochs, self._epochs + 1
        for batch in loader:
            tokens = int(batch["attention_mask"].sum())
            self._begin(epoch, batch)
            yield batch
            self._end(tokens, sys._getframe(1) if self._listener is not None else None)

    def _begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        if self._listener is not None:
            self._listener.begin(epoch, batch)
        self.flops.start()
        self.clock.start()

    def _end(self, tokens: int, caller: FrameType | None) -> None:
        synced = bool(self.accelerator.sync_gradients)
        self.clock.stop(tokens, synced)
        self.flops.stop(synced)
        if self._listener is not None and caller is not None:
            self._listener.end(caller.f_locals, synced)
        if self._limit is not None and len(self.clock.seconds) >= self._limit:
            raise StepLimitError
