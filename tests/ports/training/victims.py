"""A process that has imported everything and computed nothing, and forks a training run for every order it is given.

A fork of a process whose thread pools have run inherits their locks but not their threads, and may sleep on one for
good. This one has a single thread, and a fork of it costs milliseconds where an import costs seconds.

``python -m tests.ports.training.victims`` reads one order a line, as JSON, and answers with how it ended.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ports.training.keeper as keeper
from ports.commands import INTERRUPTED
from ports.training.stop import EXIT_CODE, StopRequest
from tests.ports.training.conftest import ALGORITHMS
from tests.ports.training.processes import members

ROOT = Path(__file__).parents[3]
PATIENCE, LIMIT = 60.0, 300.0
"""Seconds asleep after which a victim hangs, and seconds after which one that is busy does."""

LEAVE = 10.0
"""Seconds within which every process of a victim has ended."""

KILL = [signal.SIGKILL]
STOPS = ([signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM])
"""What a run answers with a checkpoint as soon as it listens; the last is one that a launcher forwards."""

ENDS = {0: "done", EXIT_CODE: "stopped"}

NO_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


@dataclass(frozen=True)
class End:
    """How a victim ended: ``killed``, ``stopped``, ``done``, or that it hung, failed or left processes behind.

    ``saved`` are the steps of its last checkpoint, -1 without one.
    """

    what: str
    saved: int
    said: str


class Server:
    """The process that forks, and the pipe to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        environment = {**os.environ, **NO_THREADS, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        command, self.folder = [sys.executable, "-m", __name__], folder
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
        )
        assert self._answer(300) == "ready"

    def run(self, algorithm: str, words: list[str], seconds: float | None = None, **changes: Any) -> End:
        """Train as the command line ``words`` says; after ``seconds`` comes the ``blow``, ``kill -9`` by default.

        ``changes`` are other values of ``patience`` and ``limit``, a ``fault`` to plant, and the ``blow``: signals, and
        whether the process ``group`` gets them, loader processes and all.
        """
        told, said = self.folder / "told", self.folder / "said"
        for file in (told, said):
            file.write_bytes(b"")
        order = {"algorithm": algorithm, "words": words, "seconds": seconds, "told": str(told), "said": str(said)}
        order |= {"patience": PATIENCE, "limit": LIMIT, "fault": "", "blow": KILL, "group": False, **changes}
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        what = self._answer(order["limit"] + order["patience"] + 30)
        saved = [int(line) for line in told.read_text().split() if line.isdecimal()]
        return End(what, saved[-1] if saved else -1, said.read_text())

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _answer(self, seconds: float) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.close()
                raise TimeoutError(f"no answer from the fork server in {seconds} s")
        return self.process.stdout.readline().strip()


def serve() -> None:
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    others = [name for name in threads if name != "jemalloc_bg_thd"]  # allocates nothing, locks nothing across forks
    if len(others) != 1:
        sys.exit(f"the fork server must have one thread, has {threads}")
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _train(order)
        print(Watch(pid, order).end(), flush=True)


def _train(order: dict[str, Any]) -> None:
    """The real command, in this fork and a session of its own; it never comes back from here."""
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(order["said"], os.O_WRONLY | os.O_APPEND), descriptor)
    faulthandler.enable()
    faulthandler.dump_traceback_later(order["limit"], exit=True)
    told = os.open(order["told"], os.O_WRONLY | os.O_APPEND)
    real = keeper.CheckpointKeeper.save

    def save(self: Any, loop: Any, name: str) -> Path:
        directory = real(self, loop, name)
        os.write(told, f"{loop.steps}\n".encode())
        FAULTS[order["fault"]]()
        return directory

    keeper.CheckpointKeeper.save = save  # type: ignore[method-assign]
    listen = StopRequest.on_signals

    @contextmanager
    def on_signals(self: StopRequest) -> Iterator[None]:
        with listen(self):
            os.write(told, b"listens\n")
            yield
            os.write(told, b"deaf\n")

    StopRequest.on_signals = on_signals  # type: ignore[method-assign]
    try:
        os._exit(ALGORITHMS[order["algorithm"]].train.main(order["words"]))
    finally:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(1)


def _sleep_on_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _leave_a_process() -> None:
    if os.fork() == 0:
        time.sleep(600)


FAULTS = {
    "": lambda: None,
    "hang": _sleep_on_a_lock,
    "spin": lambda: [None for _ in iter(int, 1)],
    "leave": _leave_a_process,
}


class Watch:
    """Waits for a fork, and deals it the blow when its time has come, unless it sleeps: then see whether it wakes."""

    def __init__(self, pid: int, order: dict[str, Any]) -> None:
        self.pid, self.order, self.listened = pid, order, False

    def end(self) -> str:
        seconds, used, since, struck = self.order["seconds"], "", time.monotonic(), False
        strike_at = math.inf if seconds is None else time.monotonic() + seconds
        while (status := self._status()) is None:
            before, used, now = used, _used(self.pid), time.monotonic()
            if used != before or _state(self.pid) != "S":
                since = now
            if now - since > self.order["patience"]:
                os.kill(self.pid, signal.SIGABRT)  # faulthandler answers with its stacks
                os.waitpid(self.pid, 0)
                return "hung"
            has_begun = os.getpgid(self.pid) == self.pid
            if not struck and has_begun and since == now and now > strike_at:
                struck = True
                self._strike()
            time.sleep(0.001)
        return self._left() or self._judged(status, struck)

    def _status(self) -> int | None:
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    def _strike(self) -> None:
        told = Path(self.order["told"]).read_text().split()
        self.listened = "listens" in told and "deaf" not in told
        for number in self.order["blow"]:
            (os.killpg if self.order["group"] else os.kill)(self.pid, number)
            time.sleep(0.005)  # two of the same, one pending, would be one

    def _left(self) -> str:
        """Loader processes may take a moment to notice; a line if there are any for longer."""
        end = time.monotonic() + LEAVE
        while left := members(self.pid):
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                return f"left {len(left)} processes behind"
            time.sleep(0.01)
        return ""

    def _judged(self, status: int, struck: bool) -> str:
        if status in ENDS:
            return ENDS[status]
        told, said = (Path(self.order[name]).read_text() for name in ("told", "said"))
        must_save = self.listened and "deaf" not in told and self.order["blow"] in STOPS
        died = -status in self.order["blow"] or (status == INTERRUPTED and "interrupted" in said)
        return "killed" if struck and died and not must_save else f"failed with {status}"


def _used(pid: int) -> str:
    """Processor time."""
    return Path(f"/proc/{pid}/schedstat").read_text().split()[0]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


if __name__ == "__main__":
    serve()
