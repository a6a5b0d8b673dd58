"""A real signal to a real process: the step is finished, everything saved, the exit code is the documented one."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ports.training.stop import EXIT_CODE, SIGNALS, StopRequest
from tests.ports.training.processes import family, members

ROOT = Path(__file__).parents[3]


def launch(flags, **changes):
    """Two loader processes, in a process group and session of its own."""
    command = [sys.executable, "-m", "ports.eagle3.train", *flags(num_workers=2, **changes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(file, size=1, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (file.exists() and file.stat().st_size >= size):
        time.sleep(0.02)
    assert file.exists()


def send(number, *pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


TOLD = {
    "SIGTERM to the process": lambda pid: send(signal.SIGTERM, pid),
    "SIGTERM to the group, and forwarded by a launcher": lambda pid: send(signal.SIGTERM, -pid, *family(pid)),
    "SIGINT to the group": lambda pid: send(signal.SIGINT, -pid),
}


@pytest.mark.parametrize("told", TOLD)
def test_a_stop_saves_and_exits_with_75(flags, tmp_path, told):
    process = launch(flags, epoch=2000)
    wait_for(tmp_path / "checkpoints" / "metrics.jsonl")
    TOLD[told](process.pid)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == EXIT_CODE == 75, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped after optimizer step ")
    assert last.endswith("; --ckpt_path auto goes on from it")
    steps = int(last.split()[4].rstrip(","))
    assert (tmp_path / "checkpoints" / f"step_{steps}" / "training_state" / "manifest.json").is_file()
    assert "Traceback" not in said
    assert members(process.pid) == []


AGAIN = {
    "Ctrl-C twice": ((signal.SIGINT, signal.SIGINT), math.inf, ["before"]),
    "Ctrl-C after SIGTERM": ((signal.SIGTERM, signal.SIGINT), math.inf, ["before"]),
    "SIGTERM forwarded": ((signal.SIGTERM, signal.SIGTERM), math.inf, []),
    "SIGTERM again, later": ((signal.SIGTERM, signal.SIGTERM), 0, ["before"]),
}


@pytest.mark.parametrize("again", AGAIN)
def test_a_signal_sets_the_flag_and_another_one_acts_as_before(monkeypatch, again):
    numbers, forwarded, expected = AGAIN[again]
    monkeypatch.setattr("ports.training.stop.FORWARDED", forwarded)
    stop, seen = StopRequest(), []
    before = {number: signal.signal(number, lambda *_: seen.append("before")) for number in SIGNALS}
    try:
        with stop.on_signals():
            os.kill(os.getpid(), numbers[0])
            assert (stop.requested, seen) == (True, [])
            os.kill(os.getpid(), numbers[1])
            assert seen == expected
        os.kill(os.getpid(), signal.SIGTERM)  # until the process has left
        assert seen == expected * (1 + bool(expected))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
