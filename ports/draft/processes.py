"""Phases that compute are commands of their own, each in a process that gives its memory back."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from torch.distributed import run as launcher
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ports import cli
from ports.commands import exit_code, hush_libraries, log_libraries
from ports.flags import PREFIX
from ports.generate.run import say
from ports.numerics import best_device
from ports.progress import Work
from ports.training.stop import LAUNCHER, SIGNALS, end_with_parent
from ports.verifier.trust import TRUSTED


class PhaseError(Exception):
    """A phase ended with ``code``, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def in_process(name: str, words: Sequence[str], good: Sequence[int] = (0,), log: Path | None = None) -> None:
    """A command by :func:`run_subprocess`."""
    run_subprocess(name, partial(cli.run, [*name.split(), *words]), good, log)


def in_processes(name: str, words: Sequence[str], count: int) -> None:
    """A command in ``count`` processes; they write to the terminal, libraries too."""
    run_subprocess(name, partial(_launch, [*name.split(), *words], count))


def _launch(words: Sequence[str], count: int) -> int:
    """The exit code of the process that ended first otherwise than well, 128 + n of one that signal n ended.

    Of the cores every process has its share. torch's launcher runs in a thread of its own: there it leaves signals to
    this process, which waits for all to have saved, and warns of orphans, which end themselves here
    (:func:`ports.training.stop.stop_with_launcher`).
    """
    for number in SIGNALS:
        signal.signal(number, _hand_on)
    logging.getLogger(api.__name__).addFilter(lambda record: "child thread" not in str(record.msg))
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if best_device().type == "cpu":
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    asked = launcher.parse_args(["--standalone", f"--nproc-per-node={count}", "-m", "ports", *words])
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(launcher.run, asked).result()
    except ChildFailedError as failed:
        code = int(failed.get_first_failure()[1].exitcode)
        return code if code > 0 else 128 - code
    return 0


def _hand_on(number: int, frame: object) -> None:
    """As SIGTERM, which may come twice: a scheduler has told the processes too."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.terminate()


def run_subprocess(name: str, act: Callable[[], Any], good: Sequence[int] = (0,), log: Path | None = None) -> None:
    """``act`` in a process of its own, which gets the signals that ask this one to stop.

    What libraries say there goes to ``log``.

    Raises:
        PhaseError: it ended with another exit code than those that are ``good``.
    """
    context = multiprocessing.get_context("spawn")
    told, telling = context.Pipe(duplex=False)
    process = context.Process(target=_phase, args=(name, act, telling, log))
    resource_tracker.ensure_running()  # whose start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process.start()
    telling.close()
    assert process.pid is not None  # it was started
    with _forwarding(process.pid):
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for what, shown in ((f"{name} begins", True), (name, False)):  # between its two words it shows its own work
            with Work(what, shown=shown), suppress(EOFError):
                if told in wait([told, process.sentinel]):
                    told.recv_bytes()
        with Work(f"{name} ends"):
            process.join()
    told.close()
    code = process.exitcode or 0
    if code < 0:
        more = f"; what libraries said is in {log}" if log else ""
        say(f"speculator {name}: ended by signal {-code}; the same command goes on{more}")
    if code not in good:
        raise PhaseError(code if code > 0 else 128 - code)


def _phase(name: str, act: Callable[[], Any], telling: Connection, log: Path | None) -> None:
    """In its own session: a terminal's Ctrl-C reaches it once, through the process that waits for it, and is a line."""
    os.setsid()
    end_with_parent()
    telling.send_bytes(b"begins")
    if log is not None:
        log_libraries(log)
    hush_libraries()
    for variable in [each for each in os.environ if each.startswith(PREFIX) and each != TRUSTED]:
        del os.environ[variable]  # it was for the whole, which hands on what a phase needs

    def run() -> Any:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with Work(name):
            return act()

    code = exit_code(run)
    with suppress(OSError):  # nobody waits for it any more
        telling.send_bytes(b"ends")
    sys.exit(code)


@contextmanager
def _forwarding(pid: int) -> Iterator[None]:
    def forward(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, number)

    before = {name: signal.signal(name, forward) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
