"""A process that has imported everything and computed nothing, and forks a training run for every order it is given.

A fork of a process whose thread pools have run inherits their locks but not their threads, and may sleep on one for
good. This one has a single thread, and a fork of it costs milliseconds where an import costs seconds.

``python -m tests.ports.training.checkpoint.victims`` reads one order a line, as JSON, and answers with how it ended.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ports.training.checkpoint.keeper as keeper
from tests.ports.training.conftest import ALGORITHMS

ROOT = Path(__file__).parents[4]
PATIENCE, LIMIT = 60.0, 300.0
"""Seconds asleep after which a victim hangs, and seconds after which one that is busy does."""

NO_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


@dataclass(frozen=True)
class End:
    """How a victim ended: ``killed``, ``done`` or what it said when it hung or failed; steps saved, -1 for none."""

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
        """Train as the command line ``words`` says and ``kill -9`` it after ``seconds``.

        ``changes`` are other values of ``patience`` and ``limit``, and a ``fault`` to plant.
        """
        told, said = self.folder / "told", self.folder / "said"
        for file in (told, said):
            file.write_bytes(b"")
        order = {"algorithm": algorithm, "words": words, "seconds": seconds, "told": str(told), "said": str(said)}
        order |= {"patience": PATIENCE, "limit": LIMIT, "fault": "", **changes}
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        what = self._answer(order["limit"] + order["patience"] + 30)
        saved = [int(line) for line in told.read_text().split()]
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
        print(_end(pid, order["seconds"], order["patience"]), flush=True)


def _train(order: dict[str, Any]) -> None:
    """The real command, in this fork; it never comes back from here."""
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
    try:
        os._exit(ALGORITHMS[order["algorithm"]].train.main(order["words"]))
    finally:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(1)


def _sleep_on_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


FAULTS = {"": lambda: None, "hang": _sleep_on_a_lock, "spin": lambda: [None for _ in iter(int, 1)]}


def _end(pid: int, seconds: float | None, patience: float) -> str:
    """Wait for the fork; kill it when its time has come, unless it sleeps: then see whether it wakes."""
    kill_at = math.inf if seconds is None else time.monotonic() + seconds
    used, since = "", time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "done" if status == 0 else f"failed with {status}"
        before, used, now = used, _used(pid), time.monotonic()
        if used != before or _state(pid) != "S":
            since = now
        if now - since > patience or (since == now and now > kill_at):
            break
        time.sleep(0.001)
    hangs = since != now
    os.kill(pid, signal.SIGABRT if hangs else signal.SIGKILL)  # faulthandler answers the first with its stacks
    os.waitpid(pid, 0)
    return "hung" if hangs else "killed"


def _used(pid: int) -> str:
    """Processor time."""
    return Path(f"/proc/{pid}/schedstat").read_text().split()[0]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


if __name__ == "__main__":
    serve()
