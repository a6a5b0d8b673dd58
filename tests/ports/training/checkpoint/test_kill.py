"""``kill -9`` at random moments of a run that saves after every step, each time resumed with ``--ckpt_path auto``.

It forks this process over and over and takes minutes, so it waits to be asked:
``KILLS=200 pytest tests/ports/training/checkpoint/test_kill.py -p no:xdist -s``.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import ports.training.checkpoint.keeper as keeper
from ports.training.checkpoint.choose import newest_whole
from tests.ports.training.conftest import ALGORITHMS, Left

KILLS = int(os.environ.get("KILLS", "0"))
LATEST = 0.6
"""Of the time that a whole run takes: a process is killed then at the latest, or is done."""

OPTIONS = {"save_steps": 1, "epoch": 3, "keep_last": 4}


class Victim:
    """A process forked from this one, so that nothing is imported again, which tells what it has saved."""

    def __init__(self, start_run, algorithm: str, cpdir: Path) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._train(start_run, algorithm, cpdir, writing)
        os.close(writing)
        self.reading = reading

    def _train(self, start_run, algorithm: str, cpdir: Path, writing: int) -> None:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        real = keeper.CheckpointKeeper.save

        def save(self, loop, name):
            directory = real(self, loop, name)
            os.write(writing, f"{loop.steps}\n".encode())
            return directory

        keeper.CheckpointKeeper.save = save
        try:
            start_run(algorithm, cpdir, ckpt_path=Path("auto"), **OPTIONS).run()
        except BaseException:
            os._exit(1)
        os._exit(0)

    def kill_after(self, seconds: float) -> tuple[bool, int]:
        """(was it killed before its end, the last step it had finished saving or -1)."""
        end, status = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.002)
        else:
            os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        with os.fdopen(self.reading) as pipe:
            saved = [int(line) for line in pipe.read().split()]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the run itself failed"
        return os.WIFSIGNALED(status), saved[-1] if saved else -1


@pytest.mark.skipif(not KILLS, reason="takes minutes: set KILLS=200 to kill a run at 200 random moments")
@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_nothing_saved_is_ever_lost(start_run, run_to_the_end, tmp_path, algorithm):
    begun = time.monotonic()
    expected = run_to_the_end(algorithm, tmp_path / "straight", **OPTIONS)
    latest = LATEST * (time.monotonic() - begun)
    draw, kills, runs, before_first = random.Random(0), 0, 0, 0
    while kills < KILLS // 2:
        cpdir, finished, saved = tmp_path / f"run{runs}", False, -1
        while not finished:
            killed, last = Victim(start_run, algorithm, cpdir).kill_after(draw.uniform(0, latest))
            kills, finished, saved = kills + killed, not killed, max(saved, last)
            said: list[str] = []
            found = newest_whole(cpdir, said.append)
            assert not [line for line in said if "damaged" in line]
            assert (found.state.steps if found else -1) >= saved, "a completed checkpoint is gone"
            before_first += found is None
        left = Left(cpdir, f"{ALGORITHMS[algorithm].prefix}{OPTIONS['epoch']}", [])
        assert expected.differs_from(left) == []
        assert not [path for path in cpdir.iterdir() if path.name.endswith((".partial", ".old", ".removed"))]
        runs += 1
    print(f"{algorithm}: {kills} kills, {before_first} before the first checkpoint, {runs} runs, all bit-identical")
