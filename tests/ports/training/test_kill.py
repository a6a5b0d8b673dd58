"""Kills and signals at random moments of a run, to it or to its group, each time resumed with ``--resume auto``.

``KILLS=200 pytest -m nightly tests/ports/training/test_kill.py -s`` for more of them, and of all runs. At every push,
test_checkpoint.py tries a crash in each phase of a save, and test_processes.py a killed process of two.
"""

import itertools
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest
from safetensors.torch import load_file, save_file

from ports.training.checkpoint import MANIFEST, MARK, seal, sweep
from ports.training.resume import newest_intact
from tests.ports.training.conftest import PREFIX, Left, Saved
from tests.ports.training.victims import Order, run

pytestmark = pytest.mark.nightly
KILLS = int(os.environ.get("KILLS", "2"))
CASES = list(itertools.product(["eagle3", "hass"], ["keyed", "drawn"]))[: None if "KILLS" in os.environ else 1]
LATEST = 0.6
"""Of the time that a whole run takes: a process is killed then at the latest, or is done."""

LATER = 1.05
"""Every kill of a run may come that much later than the one before, should the machine have become slow."""

MOST = 60
"""Kills of one run: each of them gets further, or something is wrong."""

OPTIONS = {"save_steps": 1, "epoch": 3, "bs": 2, "gradient_accumulation_steps": 2, "num_workers": 2}
"""Eight steps in four passes of shuffled, noisy, packed samples. Victims save less often: a stop does the rest."""

BLOWS = ["KILL", "TERM", "INT", "TERM TERM", "TERM INT", "INT INT"]


@pytest.fixture
def strike(fork, tmp_path):
    """Runs a victim; see :class:`Order`."""
    return lambda *words, **changes: run(fork, tmp_path, Order(*words, **changes))


@pytest.fixture
def straight(fork, strike, words, tmp_path):
    """A run that nobody kills, with every checkpoint it ever saved, and the seconds it took."""

    def make(algorithm, **options):
        fork(int).ended()  # whatever has to be imported is
        begun = time.monotonic()
        end = strike(algorithm, words(algorithm, tmp_path / "straight", "--packing", **OPTIONS, **options))
        assert end.what == "done", end.said
        return tmp_path / "straight", time.monotonic() - begun

    return make


def wrong(cpdir, saved, straight):
    """What a resume from ``cpdir`` would get wrong: a completed save that is gone, damage, or another state."""
    said = []
    sweep(cpdir)
    found = newest_intact(cpdir, said.append)
    wrongs = [line for line in said if "damaged" in line]
    if (found.state.steps if found else -1) < saved:
        wrongs.append(f"step {saved} was saved, resumes from {found.state.steps if found else 'nothing'}")
    if found:
        name = found.directory.name
        wrongs += [f"{name}: {what}" for what in Saved(straight / name).differs_from(Saved(found.directory))]
    return wrongs


@pytest.mark.parametrize(("algorithm", "noise_stream"), CASES)
def test_nothing_saved_is_ever_lost(strike, straight, words, tmp_path, algorithm, noise_stream):
    expected, seconds = straight(algorithm, noise_stream=noise_stream)
    last = f"{PREFIX[algorithm]}{OPTIONS['epoch']}"
    draw, ends, runs, resumed = random.Random(0), Counter(), 0, 0
    while ends.total() < KILLS:
        cpdir, saved, struck = tmp_path / f"run{runs}", -1, 0
        options = {**OPTIONS, "save_steps": 3, "keep_last": 4, "ckpt_path": "auto", "noise_stream": noise_stream}
        command = words(algorithm, cpdir, "--packing", **options)
        while True:
            moment = draw.uniform(0, LATEST * seconds * LATER**struck)
            blow, group = draw.choice(BLOWS), draw.random() < 0.5
            numbers = [signal.Signals[f"SIG{name}"] for name in blow.split()]
            end = strike(algorithm, command, seconds=moment, blow=numbers, group=group)
            if end.what == "done":
                break
            assert end.what in ("killed", "stopped"), f"{blow}, group: {group}: {end.what}\n{end.said}"
            ends[f"{blow} to the {'group' if group else 'process'}: {end.what}"] += 1
            struck, saved = struck + 1, max(saved, end.saved)
            assert wrong(cpdir, saved, expected) == []
            resumed += saved >= 0
            assert struck < MOST, "no run comes to its end"
        assert Left(expected, last, []).differs_from(Left(cpdir, last, [])) == []
        assert not [path for path in cpdir.iterdir() if path.name.startswith(MARK)]
        shutil.rmtree(cpdir)
        runs += 1
    print(f"{algorithm}: {ends.total()} blows, {resumed} with something saved, {runs} runs: 0 differ, 0 processes left")
    print(*(f"  {count:3} {what}" for what, count in sorted(ends.items())), sep="\n")


def test_a_lost_or_another_checkpoint_is_named(straight, tmp_path):
    """The judge of the test above."""
    expected, _ = straight("eagle3")
    cpdir = tmp_path / "cp"
    for step in (4, 5):
        shutil.copytree(expected / f"step_{step}", cpdir / f"step_{step}")
    assert wrong(cpdir, 5, expected) == []
    assert wrong(cpdir, 6, expected) == ["step 6 was saved, resumes from 5"]
    tensors = load_file(cpdir / "step_5" / "model.safetensors")
    tensors["fc.weight"][0, 0] += 1e-6
    save_file(tensors, cpdir / "step_5" / "model.safetensors")
    assert "passing over step_5, which is damaged" in wrong(cpdir, 5, expected)[0]
    (cpdir / "step_5" / MANIFEST).unlink()
    seal(cpdir / "step_5")
    assert wrong(cpdir, 5, expected) == ["step_5: model.safetensors fc.weight"]


FAULTS = {
    "hang": ({"limit": 30}, "failed with 1", ["Timeout (0:00:30)!", "in optimizer_steps"]),
    "leave": ({"leave": 1}, "left 2 processes behind", []),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_victim_that_hangs_or_leaves_something_is_noticed(strike, words, tmp_path, fault):
    limits, what, said = FAULTS[fault]
    options = {**OPTIONS, "num_workers": 0, "max_steps": 1}
    end = strike("hass", words("hass", tmp_path / "cp", **options), fault=fault, **limits)
    assert (end.what, end.saved) == (what, 1)
    assert all(line in end.said for line in said)
