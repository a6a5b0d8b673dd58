"""Two runs in one directory."""

import os
import socket

import pytest

from ports.errors import InputError
from ports.training.checkpoint import DirectoryLock
from tests.ports.forked import hold


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock and has a child, as a run with loader processes has."""
    with hold(tmp_path, tmp_path / "holder") as process:
        yield process


def test_the_second_run_is_told_who_holds_the_directory(holder, tmp_path):
    text = f"in use by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(InputError, match=text):
        DirectoryLock(tmp_path)


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    holder.kill()
    lock = DirectoryLock(tmp_path)
    assert lock.file.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_run_is_refused_before_it_touches_anything(holder, flags, tmp_path, capsys):
    from ports.eagle3 import train as eagle3

    (tmp_path / "metrics.jsonl").write_text("the other run's\n")
    assert eagle3.main(flags(cpdir=tmp_path, ckpt_path="auto")) == 2
    assert "in use by process" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "the other run's\n"
