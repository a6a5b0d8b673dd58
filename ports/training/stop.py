"""Who ends a run: a signal asks it to stop, and its processes end with it.

At SIGTERM or SIGINT a run finishes the optimizer step, saves, and leaves with a code of its own. A scheduler signals
every process of a job, while that step still needs its batches: no other's signal ends a loader process. And a trainer
that is killed can tell its processes nothing: each would keep its standard output open for those who read it. Nor can a
launcher that is: the trainer it leaves behind would hold its directory.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext, ForkContext, ForkProcess
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]

EXIT_CODE = 75
"""EX_TEMPFAIL: start the same command again with ``--resume auto``."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

FORWARDED = 5.0
"""Seconds within which another SIGTERM is the same: a scheduler signals every process, and a launcher forwards it."""

SECONDS = 0.5
"""A process ends at most that long after the one that started it."""


LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "torch.distributed.run")
"""Who starts a trainer and waits for it, by a word of its command line."""

LAUNCHER = "PORTS_LAUNCHER"
"""In the environment: the process that launches for ``speculator draft``, which may end before a rank looks for it."""

_asked = threading.Event()
"""Whether a signal has asked a run of this process to stop."""


class StoppedError(Exception):
    """A run was asked to stop and has saved ``checkpoint`` after ``steps`` optimizer steps."""

    def __init__(self, steps: int, checkpoint: Path) -> None:
        super().__init__(f"stopped after optimizer step {steps}, saved {checkpoint}; --resume auto goes on from it")
        self.steps, self.checkpoint = steps, checkpoint


class _Interruption(BaseException):
    """No Exception: nobody may take it for a failure of what it ends."""


class StopRequest:
    """Set by a signal, read at the end of every optimizer step."""

    def __init__(self) -> None:
        self.requested = self._interrupts = False
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
                _asked.set()
                if self._interrupts:
                    raise _Interruption
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

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """The block ends, and is left without an error, as soon as a stop is requested: it may change nothing."""
        with suppress(_Interruption):
            self._interrupts = True
            try:
                if self.requested:
                    raise _Interruption
                yield
            finally:
                self._interrupts = False


def _put_back(handlers: Mapping[signal.Signals, object]) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)  # type: ignore[arg-type]


def stop_with_launcher() -> None:
    """From now on, the end of a launcher that started this process is a SIGTERM, if none came before."""
    parent, told = os.getppid(), os.environ.get(LAUNCHER)
    with suppress(psutil.Error):
        words = psutil.Process(parent).cmdline()
        if told is not None:
            threading.Thread(target=_stop_after, args=(lambda: _lives(int(told)),), daemon=True).start()
        elif any(os.path.basename(word).removesuffix(".py") in LAUNCHERS for word in words):
            threading.Thread(target=_stop_after, args=(lambda: os.getppid() == parent,), daemon=True).start()


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _stop_after(lives: Callable[[], bool]) -> None:
    while lives():
        time.sleep(SECONDS)
    if not _asked.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


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
