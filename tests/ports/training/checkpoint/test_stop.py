"""A real signal to a real process: the step is finished, everything saved, the exit code is the documented one."""

import os
import signal
import time

import pytest

from ports.training.checkpoint.stop import EXIT_CODE, StopRequest
from tests.ports.forked import Forked


def wait_for(file, size=1, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (file.exists() and file.stat().st_size >= size):
        time.sleep(0.02)
    assert file.exists()


def test_sigterm_saves_and_exits_with_75(flags, tmp_path):
    process = Forked(tmp_path / "run", "ports.eagle3.train", "main", flags(epoch=2000))
    wait_for(tmp_path / "checkpoints" / "metrics.jsonl")
    os.kill(process.pid, signal.SIGTERM)
    said = process.ended()
    assert process.returncode == EXIT_CODE == 75, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped after optimizer step ")
    assert last.endswith("; --ckpt_path auto goes on from it")
    steps = int(last.split()[4].rstrip(","))
    assert (tmp_path / "checkpoints" / f"step_{steps}" / "training_state" / "manifest.json").is_file()


def test_a_signal_sets_the_flag_and_the_second_one_acts_as_before():
    stop, seen = StopRequest(), []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("ours"))
    try:
        with stop.on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.requested, seen) == (True, [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["ours"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loader_process_dies_of_sigterm_and_survives_sigint(number):
    with StopRequest().on_signals():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(3)
        status = os.waitpid(child, 0)[1]
    assert (os.WIFSIGNALED(status), os.WIFEXITED(status)) == (number == signal.SIGTERM, number == signal.SIGINT)
