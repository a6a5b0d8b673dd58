"""Processes that need no new interpreter: one process imports the ports, and forks for each."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports.training.checkpoint import LOCK, DirectoryLock

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # what is forked may have one thread
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ports.eagle3.train", "ports.hass.train", "ports.generate.__main__"])


class Forked:
    """``function(*words)`` of ``module`` in a process of its own, with what it says kept in a file of ``folder``."""

    def __init__(self, folder: Path, module: str, function: str, *words: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"said_{len(list(folder.glob('said_*')))}"
        self.file.touch()
        self.process = FORKS.Process(target=_call, args=(str(self.file), module, function, words))
        self.process.start()
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        return self.file.read_text()

    @property
    def returncode(self) -> int | None:
        """None while it runs, and minus the signal that ended it."""
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ended(self, seconds: float = 120) -> str:
        """What it said, once it has ended."""
        self.process.join(seconds)
        assert self.returncode is not None, self.said
        return self.said


def _call(file: str, module: str, function: str, words: tuple[object, ...]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.exit(getattr(importlib.import_module(module), function)(*words))


@contextmanager
def hold(directory: Path, folder: Path, name: str = LOCK) -> Iterator[Forked]:
    """A process that holds the lock on ``directory``, and has a child that does not."""
    holder = Forked(folder, __name__, "_hold", directory, name)
    while holder.returncode is None and "held" not in holder.said:
        time.sleep(0.01)
    yield holder
    holder.kill()


def _hold(directory: Path, name: str) -> None:
    lock = DirectoryLock(directory, name=name)
    if os.fork() == 0:
        os.setsid()
    else:
        print("held", lock.file, flush=True)
    time.sleep(20)
