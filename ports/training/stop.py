"""SIGTERM and SIGINT ask a run to stop: it finishes the optimizer step, saves, and leaves with a code of its own."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: start the same command again with ``--ckpt_path auto``."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

FORWARDED = 5.0
"""Seconds within which another SIGTERM is the same: a scheduler signals every process, and a launcher forwards it."""


class StoppedError(Exception):
    """A run was asked to stop and has saved ``checkpoint`` after ``steps`` optimizer steps."""

    def __init__(self, steps: int, checkpoint: Path) -> None:
        super().__init__(f"stopped after optimizer step {steps}, saved {checkpoint}; --ckpt_path auto goes on from it")
        self.steps, self.checkpoint = steps, checkpoint


class StopRequest:
    """Set by a signal, read at the end of every optimizer step."""

    def __init__(self) -> None:
        self.requested = False
        self._since = -math.inf

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen while the block runs, and after it if a signal came: it may come again before the process has left.

        Another signal acts as if nobody listened. Only a main thread can listen.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.getsignal(name) for name in SIGNALS}

        def handle(number: int, frame: FrameType | None) -> None:
            if not self.requested:
                self.requested, self._since = True, time.monotonic()
            elif number != signal.SIGTERM or time.monotonic() - self._since > FORWARDED:
                _put_back(before)
                os.kill(os.getpid(), number)

        for name in SIGNALS:
            signal.signal(name, handle)
        try:
            yield
        finally:
            if not self.requested:
                _put_back(before)


def _put_back(handlers: Mapping[signal.Signals, object]) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)  # type: ignore[arg-type]
