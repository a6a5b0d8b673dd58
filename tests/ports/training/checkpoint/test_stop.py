"""A real signal to a real process: the step is finished, everything saved, the exit code is the documented one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ports.training.checkpoint.stop import EXIT_CODE, StopRequest

ROOT = Path(__file__).parents[4]


def launch(flags, **changes):
    command = [sys.executable, "-m", "ports.eagle3.train", *flags(**changes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(file, size=1, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (file.exists() and file.stat().st_size >= size):
        time.sleep(0.02)
    assert file.exists()


def test_sigterm_saves_and_exits_with_75(flags, tmp_path):
    process = launch(flags, epoch=2000)
    wait_for(tmp_path / "checkpoints" / "metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
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
