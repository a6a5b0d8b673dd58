"""Which processes there are, by the files of Linux, and what else their tests need."""

import os
import socket
import time
from pathlib import Path


def await_end_of(pids, seconds=240):
    """A killed process closes its files before it ends: the end of its output is not yet its end."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, f"still there {seconds} s after SIGKILL: {left}"
        time.sleep(0.01)


def is_running(pid):
    """Whether there is such a process that has not ended; one that nobody has waited for yet has."""
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid):
    """A process and all below it: torchrun's workers have sessions of their own, so that no group holds them all."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def members(session):
    """The processes of a session that have not ended, those too whose parent has."""
    every = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return [pid for pid in every if session_of(pid) == session and is_running(pid)]


def session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_for(file, seconds=240):
    """Until there is such a file, with something in it."""
    end = time.monotonic() + seconds
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < end, f"{file} never came"
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
