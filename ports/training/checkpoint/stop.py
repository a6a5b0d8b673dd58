"""SIGTERM and SIGINT ask a run to stop: it finishes the optimizer step, saves, and leaves with a code of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: start the same command again with ``--ckpt_path auto``."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A run was asked to stop and has saved ``checkpoint`` after ``steps`` optimizer steps."""

    def __init__(self, steps: int, checkpoint: Path) -> None:
        super().__init__(f"stopped after optimizer step {steps}, saved {checkpoint}; --ckpt_path auto goes on from it")
        self.steps, self.checkpoint = steps, checkpoint


class StopRequest:
    """Set by a signal, read at the end of every optimizer step."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen while the block runs; a second signal acts as if nobody listened. Only a main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        owner, before = os.getpid(), {name: signal.getsignal(name) for name in SIGNALS}

        def handle(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:  # a loader process, which inherited the handler
                _as_a_child(number)
                return
            self.requested = True
            _put_back(before)

        for name in SIGNALS:
            signal.signal(name, handle)
        try:
            yield
        finally:
            _put_back(before)


def _as_a_child(number: int) -> None:
    """Loader processes outlive a terminal's Ctrl-C, since the step still needs their batches."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _put_back(handlers: Mapping[signal.Signals, object]) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)  # type: ignore[arg-type]
