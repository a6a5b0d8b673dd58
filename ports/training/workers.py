"""Processes that end with the one that started them, and loader processes, which no other's signal ends.

A scheduler signals every process of a job, while the optimizer step that a stop finishes still needs its batches. And
a trainer that is killed can tell its processes nothing: each would keep its standard output open for those who read it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from multiprocessing.context import BaseContext, ForkContext, ForkProcess

from ports.training.stop import SIGNALS

SECONDS = 0.5
"""A process ends at most that long after the one that started it."""


def end_with_parent(blocked: Collection[signal.Signals] = (), parent: int | None = None) -> None:
    """End this process as soon as its parent has, whatever it is doing.

    Args:
        blocked: signals that wait in every thread of this process; the parent's ends it, others' are dropped.
        parent: id of the process that started this one; known where multiprocessing did.
    """
    started = multiprocessing.parent_process()
    parent = parent if started is None else started.pid
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, blocked), daemon=True).start()


def _watch(parent: int, blocked: Collection[signal.Signals]) -> None:
    while os.getppid() == parent and _next_sender(blocked) != parent:
        pass
    os._exit(0)


def _next_sender(blocked: Collection[signal.Signals]) -> int | None:
    """Who sent the next signal; None if there was none for a while."""
    if sys.platform != "linux":
        time.sleep(SECONDS)
        return None
    told = signal.sigtimedwait(blocked, SECONDS)
    return None if told is None else told.si_pid


class _LoaderProcess(ForkProcess):
    def start(self) -> None:
        """What is blocked while it is forked stays blocked in it: there is no moment at which a signal ends it."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _LoaderContext(ForkContext):
    Process = _LoaderProcess


def loader_context() -> BaseContext | None:
    """How loader processes start; None, as torch does, where the sender of a signal cannot be told."""
    return _LoaderContext() if sys.platform == "linux" else None


def start_worker(number: int) -> None:
    """What a loader process does first."""
    end_with_parent(SIGNALS if sys.platform == "linux" else ())
