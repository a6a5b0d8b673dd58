"""Loader processes that read for ever: which signals end them, and that they do not outlive their trainer."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.ports.training.processes import ROOT, await_end_of, children, is_running, members

TRAINER = """
import sys, time
from ports.training.data import RecordDataset, build_loader

class Endless(RecordDataset):
    def __getitem__(self, index):
        print("reading", flush=True)
        time.sleep(600)

batches = iter(build_loader(Endless(files=range(4), widths={}, vocab_size=9), 1, num_workers=2, prefetch_factor=1))
sys.stdin.readline()
raise RuntimeError("the trainer ends with its loader processes at work")
"""


@pytest.fixture
def trainer():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", TRAINER], env=environment, start_new_session=True, **pipes)
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines == ["reading\n"] * 2, (lines, process.poll(), process.stderr.read() if "" in lines else "")
    yield process
    for pid in members(process.pid):
        os.kill(pid, signal.SIGKILL)


ENDS = {
    "killed": (lambda trainer: trainer.kill(), -signal.SIGKILL),
    "raises": (lambda trainer: trainer.stdin.write("go on\n"), 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_loader_process_outlives_its_trainer(trainer, end):
    """Its output ends too, which ``| tee`` waits for."""
    workers, (act, code) = children(trainer.pid), ENDS[end]
    act(trainer)
    said = trainer.communicate(timeout=20)[1]
    await_end_of(workers, 20)
    assert trainer.returncode == code
    assert said.count("Error") == (1 if end == "raises" else 0), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_other_process_ends_them(trainer, number):
    workers = children(trainer.pid)
    for pid in workers:
        os.kill(pid, number)
    time.sleep(1)
    assert all(map(is_running, workers))
