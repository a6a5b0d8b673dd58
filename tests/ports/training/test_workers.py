"""Loader processes that read for ever: which signals end them, and that they do not outlive their trainer."""

import os
import signal
import time

import pytest

from ports.training.data import RecordDataset, build_loader
from tests.processes import await_end_of, children, is_running


class Endless(RecordDataset):
    def __getitem__(self, index):
        os.write(1, b"reading\n")  # at once: two processes say it
        time.sleep(600)


def train() -> None:
    """Raises when told to by SIGHUP."""

    def fail(*_):
        raise RuntimeError("the trainer ends with its loader processes at work")

    signal.signal(signal.SIGHUP, fail)
    next(iter(build_loader(Endless(files=range(4), widths={}, vocab_size=9), 1, num_workers=2, prefetch_factor=1)))


@pytest.fixture
def trainer(fork):
    trainer = fork(train)
    while trainer.said.count("reading\n") < 2:  # torch may warn: more processes than cores
        assert trainer.returncode is None, trainer.said
        time.sleep(0.01)
    return trainer


ENDS = {
    "killed": (lambda trainer: trainer.kill(), -signal.SIGKILL),
    "raises": (lambda trainer: os.kill(trainer.pid, signal.SIGHUP), 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_loader_process_outlives_its_trainer(trainer, end):
    workers, (act, code) = children(trainer.pid), ENDS[end]
    act(trainer)
    said = trainer.ended(20)
    await_end_of(workers, 20)
    assert trainer.returncode == code
    assert said.count("Error: ") == (1 if end == "raises" else 0), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_other_process_ends_them(trainer, number):
    workers = children(trainer.pid)
    for pid in workers:
        os.kill(pid, number)
    time.sleep(1)
    assert all(map(is_running, workers))
