"""Copies of an engine, each a process with devices of its own; a window of work goes to the next one that is free."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field

from ports.commands import exit_code, hush_libraries
from ports.errors import InputError
from ports.generate.records import geometry_of
from ports.training.stop import end_with_parent
from ports.verifier.config import verifier_config
from ports.verifier.loading import verifier_parameters

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
TensorParallel = Annotated[
    int | None,
    Field(ge=1, description="devices that a copy of the verifier is spread over; default: as few as hold its weights"),
]

FILLED = 0.7
"""Of a device's free memory, the share that weights may fill; vLLM's cache and hidden states take the rest."""


def devices_for(model: str, dtype: str = "auto") -> int:
    """The fewest of the visible devices that hold the verifier's weights in ``dtype``, ``auto`` for its own, or a name
    of torch's; where no number of them is enough, all.

    Each has a whole number of attention heads, as vLLM wants it. Where torch cannot tell what is free, one.
    """
    visible = torch.accelerator.device_count()
    free = free_memory_everywhere() if visible > 1 else None
    if free is None:
        return 1
    needed = geometry_of("ids", model, dtype=dtype).item_bytes * verifier_parameters(model)
    heads = verifier_config(model).num_attention_heads
    even = [count for count in range(1, visible + 1) if heads % count == 0]
    return next((count for count in even if needed <= FILLED * free * count), even[-1])


def free_memory_everywhere() -> int | None:
    """Bytes that are free on each of the visible devices, as :func:`ports.numerics.free_memory` has them.

    A process of its own asks, since it holds some of every device that it asks. None where it cannot tell, or fails.
    """
    code = "from ports import numerics; print(numerics.least_free_memory())"
    said = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True).stdout.strip()
    return int(said) if said.isdecimal() else None


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
    ready, given = dict[int, R](), 0
    with closing(_Copies(open_engine, windows, copies, devices)) as started:
        while started.busy:
            ready |= started.made()
            while given in ready:
                yield ready.pop(given)
                given += 1


class _Copies:
    """All of them: those ``busy``, by their pipes, the windows that are ``left``, and the ``ends`` still allowed."""

    def __init__(
        self, open_engine: Callable[[int], Any], windows: Sequence[Any], copies: int, devices: int | None
    ) -> None:
        self.open_engine, self.devices = open_engine, devices
        self.left, self.ends, self.tried = deque(enumerate(windows)), AGAIN * copies, set[int]()
        self.busy, self.done = dict[Any, _Copy](), list[_Copy]()
        for number in range(copies):
            self.start(number)

    def start(self, number: int) -> None:
        copy = _Copy(self.open_engine, number, self.devices)
        self.busy[copy.pipe] = copy

    def made(self) -> dict[int, Any]:
        """Wait for the next copies, and give each another window: what they made of theirs, by number."""
        found: dict[int, Any] = {}
        for pipe in wait(list(self.busy)):
            copy = self.busy.pop(pipe)
            try:
                result = copy.pipe.recv()
            except (EOFError, OSError):
                self.start_again(copy)
            else:
                found |= {number: result for number, _ in copy.window}
                self.hand(copy)
        return found

    def hand(self, copy: _Copy) -> None:
        """The next window; without one the copy ends."""
        copy.window = [self.left.popleft()] if self.left else []
        with suppress(OSError):  # it has ended, and is met next time
            copy.pipe.send([window for _, window in copy.window])
        if copy.window:
            self.busy[copy.pipe] = copy
        else:
            self.done.append(copy)

    def start_again(self, copy: _Copy) -> None:
        """Another process in the place of one that ended; see :func:`through_copies` for when that is refused."""
        self.ends -= 1
        copy.process.join()
        code, numbers = copy.process.exitcode or 0, {number for number, _ in copy.window}
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if self.ends < 0 or (code >= 0 and numbers <= self.tried):
            expected = "copies that end well; the same command goes on where they stopped"
            raise InputError("copies", "processes", f"{copy.number} ended {how}", expected)
        print(f"copy {copy.number}: ended {how}; started again, its window is done again", file=sys.stderr)
        self.tried |= numbers
        self.left.extendleft(copy.window)
        self.start(copy.number)

    def close(self) -> None:
        """End those at work, and wait for all."""
        for copy in self.busy.values():
            copy.process.terminate()
        for copy in (*self.busy.values(), *self.done):
            copy.process.join()


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
