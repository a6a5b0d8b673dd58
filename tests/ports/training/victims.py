"""Training runs in forks, that are dealt a blow at a given moment, and how they end."""

import faulthandler
import math
import os
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import ports.training.checkpoint_manager as checkpoint_manager
from ports.commands import INTERRUPTED
from ports.training.stop import EXIT_CODE, StopRequest
from tests.ports.conftest import TRAIN
from tests.processes import members

LIMIT = 300.0
"""Seconds after which a victim hangs: it says where, and ends with 1."""

LEAVE = 10.0
"""Seconds within which every process of a victim has ended."""

KILL = [signal.SIGKILL]
STOPS = ([signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM])
"""What a run answers with a checkpoint as soon as it listens; the last is one that a launcher forwards."""

ENDS = {0: "done", EXIT_CODE: "stopped"}


@dataclass(frozen=True)
class End:
    """How a victim ended: ``killed``, ``stopped``, ``done``, or that it failed or left processes behind.

    ``saved`` are the steps of its last checkpoint, -1 without one.
    """

    what: str
    saved: int
    said: str


@dataclass(frozen=True)
class Order:
    """A run as the command line ``words`` says; after ``seconds`` comes the ``blow``, ``kill -9`` by default.

    ``fault`` is one to plant, and ``group`` whether its process group gets the blow, loader processes and all.
    """

    algorithm: str
    words: list[str]
    seconds: float = math.inf
    blow: list[signal.Signals] = field(default_factory=lambda: KILL)
    group: bool = False
    fault: str = ""
    limit: float = LIMIT
    leave: float = LEAVE


def run(fork, folder, order):
    told = folder / "told"
    told.write_bytes(b"")
    victim = fork(_train, order, str(told), ACCELERATE_USE_CPU="true")
    what = Watch(victim, order, told).end()
    saved = [int(line) for line in told.read_text().split() if line.isdecimal()]
    return End(what, saved[-1] if saved else -1, victim.said)


def _train(order, told_file):
    """The real command, in this fork, telling what it saves and whether it listens."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(order.limit, exit=True)
    told = os.open(told_file, os.O_WRONLY | os.O_APPEND)
    real = checkpoint_manager.CheckpointManager.save

    def save(self, loop, name):
        directory = real(self, loop, name)
        os.write(told, f"{loop.steps}\n".encode())
        FAULTS[order.fault]()
        return directory

    checkpoint_manager.CheckpointManager.save = save
    listen = StopRequest.on_signals

    @contextmanager
    def on_signals(self):
        with listen(self):
            os.write(told, b"listens\n")
            yield
            os.write(told, b"deaf\n")

    StopRequest.on_signals = on_signals
    return TRAIN[order.algorithm][0].main(order.words)


def _leave_a_process():
    if os.fork() == 0:
        time.sleep(600)


FAULTS = {
    "": lambda: None,
    "hang": lambda: time.sleep(600),
    "leave": _leave_a_process,
}


class Watch:
    """Waits for a victim, and deals it the blow when its time has come."""

    def __init__(self, victim, order, told):
        self.victim, self.pid, self.order, self.told, self.listened = victim, victim.pid, order, told, False

    def end(self):
        struck, strike_at = False, time.monotonic() + self.order.seconds
        while (status := self.victim.returncode) is None:
            with suppress(ProcessLookupError):  # it has just ended
                if not struck and time.monotonic() > strike_at and os.getpgid(self.pid) == self.pid:
                    struck = True
                    self._strike()
            time.sleep(0.001)
        return self._left() or self._judged(status, struck)

    def _strike(self):
        told = self.told.read_text().split()
        self.listened = "listens" in told and "deaf" not in told
        for number in self.order.blow:
            (os.killpg if self.order.group else os.kill)(self.pid, number)
            time.sleep(0.005)  # two of the same, one pending, would be one

    def _left(self):
        """Loader processes may take a moment to notice; a line if there are any for longer."""
        end = time.monotonic() + self.order.leave
        while left := members(self.pid):
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                return f"left {len(left)} processes behind"
            time.sleep(0.01)
        return ""

    def _judged(self, status, struck):
        if status in ENDS:
            return ENDS[status]
        must_save = self.listened and "deaf" not in self.told.read_text() and self.order.blow in STOPS
        died = -status in self.order.blow or (status == INTERRUPTED and "interrupted" in self.victim.said)
        return "killed" if struck and died and not must_save else f"failed with {status}"
