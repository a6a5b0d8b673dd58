"""Two runs in one directory."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ports.errors import InputError
from ports.training.checkpoint.lock import DirectoryLock

ROOT = Path(__file__).parents[4]
HOLDER = """
import os, sys, time
from pathlib import Path
from ports.training.checkpoint.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
if os.fork() == 0:
    os.setsid()
else:
    print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock and has a child, as a run with loader processes has."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_run_is_told_who_holds_the_directory(holder, tmp_path):
    text = f"in use by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(InputError, match=text):
        DirectoryLock(tmp_path)


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = DirectoryLock(tmp_path)
    assert lock.file.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_run_is_refused_before_it_touches_anything(holder, flags, tmp_path, capsys):
    from ports.eagle3 import train as eagle3

    (tmp_path / "metrics.jsonl").write_text("the other run's\n")
    assert eagle3.main(flags(cpdir=tmp_path, ckpt_path="auto")) == 2
    assert "in use by process" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "the other run's\n"
