"""Copies of an engine, each a process with devices of its own; a window of work goes to the next one that is free."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field

from ports.commands import exit_code, hush_libraries
from ports.errors import InputError
from ports.training.stop import end_with_parent

W = TypeVar("W")
R = TypeVar("R")

VISIBLE = "CUDA_VISIBLE_DEVICES"

AGAIN = 3
"""Times a copy that copies which end are started again."""

CopyCount = Annotated[
    int | None,
    Field(
        ge=1,
        description="of the verifier, processes that share the work; default: as many as the visible devices hold, "
        "on a CPU 1",
    ),
]
TensorParallel = Annotated[int, Field(ge=1, description="devices that a copy of the verifier is spread over")]


def copies_of(asked: int | None, tensor_parallel: int) -> int:
    """How many copies there are to be, where so many are ``asked`` for.

    Raises:
        InputError: they take more devices than are visible.
    """
    visible = torch.accelerator.device_count()
    if 0 < visible < (asked or 1) * tensor_parallel:
        found = f"{asked or 1} times --tensor-parallel {tensor_parallel}"
        raise InputError("command line", "--copies", found, f"at most {visible}, the visible devices")
    return asked or max(1, visible // tensor_parallel)


class _Copy:
    """The process ``number``, which sees its own of ``devices`` a copy, the pipe to it, and the window that it has."""

    def __init__(self, open_engine: Callable[[int], Any], number: int, devices: int | None) -> None:
        self.number, self.window = number, list[tuple[int, Any]]()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(open_engine, number, theirs))
        with _only_visible(number, devices):
            self.process.start()
        theirs.close()


def through_copies(
    open_engine: Callable[[int], Callable[[W], R]], windows: Sequence[W], copies: int, devices: int | None
) -> Generator[R, None, None]:
    """What an engine makes of each of ``windows``, in their order; of one copy, in this process.

    A copy that ends is started again, and its window is done again: whenever a signal ended it, and once a window where
    it ended by itself, as with a process of vLLM's that died.

    Args:
        open_engine: takes the number of a copy and loads its engine, in its process, to which it is pickled.
        windows: what an engine is called with.
        copies: at most.
        devices: of each; None: all see all.

    Raises:
        InputError: a copy ended before it had a window, or twice at one, and its message stands above; or copies were
            ended too often.
    """
    copies = min(copies, len(windows))
    if copies < 2 and devices in (None, 1):
        engine = open_engine(0) if windows else None
        yield from map(engine, windows)  # type: ignore[arg-type]
        return
    left, lives, ended = deque(enumerate(windows)), AGAIN * copies, list[_Copy]()
    started = [_Copy(open_engine, number, devices) for number in range(copies)]
    busy: dict[Any, _Copy] = {copy.pipe: copy for copy in started}
    ready, given, tried = dict[int, R](), 0, set[int]()
    try:
        while busy:
            for pipe in wait(list(busy)):
                copy = busy[pipe]
                try:
                    made = copy.pipe.recv()
                except (EOFError, OSError):
                    lives -= 1
                    _say_ended(copy, lives, tried)
                    tried.update(number for number, _ in copy.window)
                    left.extendleft(busy.pop(pipe).window)
                    copy = _Copy(open_engine, copy.number, devices)
                    busy[copy.pipe] = copy
                    continue
                ready |= {number: made for number, _ in copy.window}
                copy.window = [left.popleft()] if left else []
                with suppress(OSError):  # it has ended, and is met next time
                    copy.pipe.send([window for _, window in copy.window])
                if not copy.window:
                    ended.append(busy.pop(pipe))
            while given in ready:
                yield ready.pop(given)
                given += 1
    finally:
        for copy in busy.values():
            copy.process.terminate()
        for copy in (*busy.values(), *ended):
            copy.process.join()


def _say_ended(copy: _Copy, lives: int, tried: Collection[int]) -> None:
    copy.process.join()
    code = copy.process.exitcode or 0
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    if lives < 0 or (code >= 0 and all(number in tried for number, _ in copy.window)):
        expected = "copies that end well; the same command goes on where they stopped"
        raise InputError("copies", "processes", f"{copy.number} ended {how}", expected)
    print(f"copy {copy.number}: ended {how}; started again, its window is done again", file=sys.stderr)


def _serve(open_engine: Callable[[int], Callable[[Any], Any]], number: int, pipe: Connection) -> None:
    end_with_parent()
    hush_libraries()

    def run() -> None:
        engine = open_engine(number)
        pipe.send(None)
        while windows := pipe.recv():
            pipe.send(engine(*windows))

    sys.exit(exit_code(run))


@contextmanager
def _only_visible(number: int, devices: int | None) -> Iterator[None]:
    """A process that is started here sees its own devices alone, from its first import on, which may count them."""
    before = os.environ.copy()
    if devices is not None:
        own = slice(number * devices, (number + 1) * devices)
        given = before.get(VISIBLE, ",".join(map(str, range(own.stop))))
        os.environ[VISIBLE] = ",".join(given.split(",")[own])
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        os.environ.update(before)
