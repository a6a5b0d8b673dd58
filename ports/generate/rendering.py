"""How long a chat template may take, and how much it may make: it is a program that came with a model."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ports.errors import InputError
from ports.generate.conversations import Message

SECONDS = 10.0
"""For one dialogue."""

ROOM = 1 << 20
"""Characters of a text beside those of its turns, each of which may stand in it :data:`TIMES` times."""

TIMES = 16

MEMORY = 1 << 30
"""Bytes that a text may take while it is made."""


class _TooLongError(BaseException):
    """No Exception: nothing that a template runs through may take it for its own."""


def rendered(tokenizer: Any, turns: Sequence[Message], render: Callable[[], str]) -> str:
    """What ``render`` makes of ``turns`` with the chat template of ``tokenizer``, within bounds.

    Raises:
        InputError: it is not done in :data:`SECONDS` (where this is the main thread, which alone can be interrupted),
            takes more than :data:`MEMORY` (Linux) or makes much more than it was given. What it raises itself, it may.
    """
    most = ROOM + TIMES * sum(len(turn["content"]) for turn in turns)
    found = f"more than {most:,} characters"
    try:
        with _in_time(), _in_memory():
            text = render()
        if len(text) <= most:
            return text
    except MemoryError:
        found = f"more than {MEMORY >> 20:,} MiB"
    except _TooLongError:
        found = f"not done after {SECONDS:g} s"
    name = getattr(tokenizer, "name_or_path", "tokenizer")
    raise InputError(name, "chat_template", found, "a template that puts a few tokens around every turn")


@contextmanager
def _in_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _in_memory() -> Iterator[None]:
    """The process may grow by :data:`MEMORY` while this lasts."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
