"""Start commands and torchrun jobs, and leave none of their processes behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
SECONDS = 240


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(*words, launcher=(), **variables) -> subprocess.Popen:
    """``python <launcher> <words>`` on the CPU with one thread; ``variables`` go into its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *map(str, launcher), *map(str, words)]
    return subprocess.Popen(
        command, env={**environment, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes, seconds=SECONDS) -> list[str]:
    """What they said, once all have ended well."""
    outputs = [ended(process, seconds) for process in processes]
    for process, (_, stderr) in zip(processes, outputs):
        assert process.returncode == 0, stderr[-3000:]
    return [stdout for stdout, _ in outputs]


def ended(process, seconds=SECONDS) -> tuple[str, str]:
    """Its output and errors; one that is not done in time is killed with everything below it."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        members = family(process.pid)
        for pid in members:
            os.kill(pid, signal.SIGKILL)
        _, stderr = process.communicate()
        await_end_of(members)
        raise AssertionError(f"not done in {seconds} s: {process.args}\n{stderr[-3000:]}") from late


def await_end_of(pids: list[int], seconds=SECONDS) -> None:
    """A killed process closes its files before it ends: the end of its output is not yet its end."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, f"still there {seconds} s after SIGKILL: {left}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody has waited for yet has."""
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(pid: int) -> list[int]:
    """A process and all below it: torchrun's workers have sessions of their own, so that no group holds them all."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def members(session: int) -> list[int]:
    """The processes of a session that have not ended, those too whose parent has."""
    every = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in every if session_of(pid) == session and is_running(pid)]


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torchrun(*options, port=None) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", *options, *(("--master_port", port) if port else ()))


def two_processes() -> tuple[str, ...]:
    return torchrun("--nproc_per_node", "2", port=free_port())
