"""What a command shows while it works: how much is done, and what is left as measured so far.

A terminal has one line for it, which changes; elsewhere (a log file, CI) there is a new one every :data:`ELSEWHERE`
seconds, whatever the work does meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from tqdm import tqdm

T = TypeVar("T")

TERMINAL, ELSEWHERE = 0.2, 10.0
"""Seconds after which it is shown again."""

COUNTED = {True: "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left", False: "{desc}: {elapsed}"}
"""By whether there is a total."""

_open: list[Work] = []
"""Of this process, the innermost last."""


class Work:
    """Something that takes time: shown while its block runs, in place of the work around it.

    Args:
        what: is being done.
        total: how much of it there is; None: that is not known.
        done: what was there before, which took none of this time.
        shown: nothing is, nor of any work inside, if not.
    """

    def __init__(self, what: str, total: int | None = None, done: int = 0, shown: bool = True) -> None:
        self.what, self.total, self.done, self.shown = what, total, done, shown
        self.reached: float = done
        self._first, self._since = done, time.monotonic()

    def __enter__(self) -> Work:
        self.shown = self.shown and all(each.shown for each in _open[-1:])
        _open.append(self)
        if len(_open) == 1:
            _screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        _open.remove(self)
        for around in _open[-1:]:
            around._begin()
        if not _open:
            _screen.end()

    def _begin(self) -> None:
        """What came before the first of it was done, as loading a model, takes no part in what is measured."""
        if self.reached == self._first:
            self._since = time.monotonic()

    def add(self, count: int = 1) -> None:
        """So much more is done."""
        self.at(self.done + count)

    def at(self, done: int, reached: float | None = None) -> None:
        """So much is ``done``; ``reached`` counts the parts of what is not."""
        self.done, self.reached = done, done if reached is None else reached

    def line(self, width: int | None = None) -> str:
        """What is shown, with a bar where a terminal is so wide."""
        counted = "" if self.total is None else f" {self.done:,} of {self.total:,}"
        form = COUNTED[bool(self.total)]
        form = form if width else form.replace("|{bar}|", ",")
        elapsed, prefix = time.monotonic() - self._since, self.what + counted
        reached, total = min(self.reached, self.total or 0), cast(float, self.total)  # of which there may be none
        return tqdm.format_meter(
            reached, total, elapsed, initial=self._first, ncols=width, prefix=prefix, bar_format=form
        )


def through(things: Sequence[T], what: str, shown: bool = True) -> Iterator[T]:
    """``things`` one after the other, as work."""
    with Work(what, len(things), shown=shown) as work:
        for thing in things:
            yield thing
            work.add()


def hide() -> None:
    """Show nothing more of the work that is open."""
    for work in _open:
        work.shown = False


class _Screen:
    """Shows the innermost work, from a thread: what a command does may take long between two signs of its own."""

    def __init__(self) -> None:
        self._lock, self._drawn, self._begun = threading.RLock(), False, False
        self._ended: threading.Event | None = None

    def start(self) -> None:
        self._before = sys.stdout, sys.stderr
        self._stream, self._process = sys.stderr, os.getpid()
        self._terminal = self._stream is not None and self._stream.isatty()
        if self._terminal:
            sys.stdout, sys.stderr = (_Above(self, stream) for stream in self._before)
            self._draw()
        self._ended = threading.Event()
        threading.Thread(target=self._show, args=(self._ended,), daemon=True).start()

    def end(self) -> None:
        if self._ended is not None:
            self._ended.set()
        self.clear()
        if self._terminal:
            sys.stdout, sys.stderr = self._before

    def _show(self, ended: threading.Event) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for who works
        while not ended.wait(TERMINAL if self._terminal else ELSEWHERE):
            self._draw()

    def _draw(self) -> None:
        with self._lock, suppress(OSError, ValueError, IndexError):  # nobody reads it any more, or all is done
            work = _open[-1]
            if self._begun:  # a line that is not at its end
                return
            if not work.shown:
                self.clear()
            elif self._terminal:
                width = shutil.get_terminal_size().columns - 1
                self._stream.write(f"\r{work.line(width)[:width]}\x1b[K")
                self._drawn = True
            else:
                self._stream.write(f"{work.line()}\n")
            self._stream.flush()

    def clear(self) -> None:
        """Of a terminal."""
        with self._lock, suppress(OSError, ValueError):
            if self._drawn:
                self._drawn = False
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def write(self, stream: Any, text: str) -> Any:
        """Above what is shown; forks of this process, which have no such thread, know nothing of it."""
        if os.getpid() != self._process:
            return stream.write(text)
        with self._lock:
            self.clear()
            self._begun = not text.endswith("\n")
            return stream.write(text)


class _Above:
    """A stream to a terminal on which work is shown."""

    def __init__(self, screen: _Screen, stream: Any) -> None:
        self._screen, self._stream = screen, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        """As the stream's."""
        return self._screen.write(self._stream, text)


_screen = _Screen()
