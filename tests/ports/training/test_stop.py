"""Real signals to real processes: a trainer finishes its step and saves, its loader processes end with it alone."""

import contextlib
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ports.eagle3.train import main
from ports.training import stop
from ports.training.data import RecordDataset, build_loader
from ports.training.stop import EXIT_CODE, SIGNALS, StopRequest
from tests.processes import await_end_of, children, family, is_running, members, wait_for


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
def test_a_stop_saves_and_exits_with_75(fork, flags, tmp_path, told):
    """With two loader processes, in a process group of its own."""
    process = fork(main, flags(num_workers=2, epoch=2000))
    wait_for(tmp_path / "checkpoints" / "metrics.jsonl")
    TOLD[told](process.pid)
    said = process.ended()
    assert process.returncode == EXIT_CODE == 75, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped after optimizer step ")
    assert last.endswith("; --resume auto goes on from it")
    steps = int(last.split()[4].rstrip(","))
    assert (tmp_path / "checkpoints" / f"step_{steps}" / "training_state" / "manifest.json").is_file()
    assert "Traceback" not in said
    assert members(process.pid) == []


def test_a_rank_that_begins_after_its_launcher_has_ended_does_not_train(fork, flags):
    """Killed while its ranks import what they need."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    process = fork(main, flags(epoch=2000), **{stop.LAUNCHER: str(gone.pid)})
    process.ended()
    assert process.returncode in (-signal.SIGTERM, EXIT_CODE), process.said


def launched(words):
    """Whose command line says ``-c``, as if that were a launcher's: it starts a trainer and waits."""
    stop.LAUNCHERS = ("-c",)
    if os.fork() == 0:
        print(f"ended with {main(words)}", flush=True)
        os._exit(0)
    return os.wait()[1]


def test_a_trainer_whose_launcher_is_gone_saves_and_ends(fork, flags, tmp_path):
    launcher = fork(launched, flags(epoch=2000))
    wait_for(tmp_path / "checkpoints" / "metrics.jsonl")
    (trainer,) = children(launcher.pid)
    launcher.kill()
    await_end_of([trainer])
    assert f"ended with {EXIT_CODE}" in launcher.said
    assert list((tmp_path / "checkpoints").glob("step_*/training_state/manifest.json"))


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
    request, seen = StopRequest(), []
    before = {number: signal.signal(number, lambda *_: seen.append("before")) for number in SIGNALS}
    try:
        with request.on_signals():
            os.kill(os.getpid(), numbers[0])
            assert (request.requested, seen) == (True, [])
            os.kill(os.getpid(), numbers[1])
            assert seen == expected
        os.kill(os.getpid(), signal.SIGTERM)  # until the process has left
        assert seen == expected * (1 + bool(expected))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Endless(RecordDataset):
    def __getitem__(self, index):
        os.write(1, b"reading\n")  # at once: two processes say it
        time.sleep(600)


def read_on():
    """Raises when told to by SIGHUP."""

    def fail(*_):
        raise RuntimeError("the trainer ends with its loader processes at work")

    signal.signal(signal.SIGHUP, fail)
    next(iter(build_loader(Endless(files=range(4), widths={}, vocab_size=9), 1, num_workers=2, prefetch_factor=1)))


@pytest.fixture
def trainer(fork):
    trainer = fork(read_on)
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
    for pid in workers * 2:  # who takes a second one has outlived the first
        os.kill(pid, number)
        while is_running(pid) and is_pending(pid, number):
            time.sleep(0.01)
    assert all(map(is_running, workers))


def is_pending(pid, number):
    """Whether the process has been sent that signal and has not taken it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return bool(int(next(line.split()[1] for line in lines if line.startswith("ShdPnd")), 16) >> number - 1 & 1)
