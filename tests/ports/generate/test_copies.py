"""Copies of an engine: each has devices of its own, windows come in order, and a copy that is killed starts again."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ports.commands import exit_code
from ports.errors import InputError
from ports.generate import copies as module
from ports.generate.__main__ import main
from ports.generate.copies import through_copies
from tests.ports.generate.conftest import forking

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")
"""At the import of this module, by whichever process."""


def seeing(copy):
    return lambda window: (copy, window, SEEN)


def test_a_copy_sees_its_devices_before_it_imports_anything_and_windows_come_in_order(monkeypatch):
    """CUDA reads the variable once, which the imports of a spawned process make it do."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-ab,7")
    found = list(through_copies(seeing, [*"abcde"], 2, 2))
    assert [window for _, window, _ in found] == [*"abcde"]
    assert {(copy, seen) for copy, _, seen in found} <= {(0, "4,5"), (1, "GPU-ab,7")}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,GPU-ab,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for number, devices, seen in ((0, 2, "0,1"), (3, 2, "6,7"), (1, None, None)):
        with module._only_visible(number, devices):
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def failed():
    raise InputError("an engine", "process", "dead", "alive")


def dying(folder, deaths, how, copy):
    """Ends in window 3 as often as that."""

    def act(window):
        (folder / f"{window} of {os.getpid()}").touch()
        if window == 3 and len([*folder.glob("3 of *")]) <= deaths:
            how()
        return window

    return act


def through(folder, deaths, how):
    """In an interpreter whose processes are forked."""

    def entry(argv):
        made = list(through_copies(partial(dying, folder, deaths, how), range(7), 2, None))
        print(f"made {made}", flush=True)

    return exit_code(lambda: forking(entry, []))


@pytest.mark.parametrize(("deaths", "how", "said"), [(2, killed, "by signal 9"), (1, failed, "with code 2")])
def test_a_copy_that_ends_is_started_again_and_nothing_is_done_twice(fork, tmp_path, deaths, how, said):
    process = fork(through, tmp_path, deaths, how)
    assert f"made {[*range(7)]}" in process.ended()
    assert process.said.count(f"ended {said}; started again, its window is done again") == deaths
    assert sorted(each.name.split()[0] for each in tmp_path.glob("* of *")) == sorted([*"0123456", *"3" * deaths])


@pytest.mark.parametrize(("how", "times"), [(killed, 7), (failed, 2)])
def test_copies_that_always_end_end_the_command(fork, tmp_path, how, times):
    """A failure twice in the same window is none of the machine's."""
    process = fork(through, tmp_path, 99, how)
    assert "expected copies that end well; the same command goes on where they stopped" in process.ended()
    assert process.returncode == 2
    assert len([*tmp_path.glob("3 of *")]) == times


REFUSED = [({"copies": 3}, "3 times --tensor-parallel 1"), ({"tensor_parallel": 4}, "1 times --tensor-parallel 4")]


@pytest.mark.parametrize(("changes", "found"), [*REFUSED, ({"total_gpus": 3}, REFUSED[0][1])])
def test_more_devices_than_are_visible_are_refused(flags, monkeypatch, capsys, changes, found):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert main(flags(**changes)) == 2
    assert f"--copies: found {found}, expected at most 2, the visible devices" in capsys.readouterr().err


GB = 10**9


@pytest.mark.parametrize(
    ("devices", "free", "expected"),
    [(0, None, 1), (1, None, 1), (8, None, 1), (8, 30, 1), (8, 28, 2), (8, 15, 2), (8, 14, 4), (8, 7, 4), (3, 4, 2)],
)
def test_a_copy_takes_as_few_devices_as_hold_its_weights(monkeypatch, devices, free, expected):
    """Of 10,000 million numbers in bfloat16 and four heads, on devices of so many GB; three would split a head."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    monkeypatch.setattr(module, "free_memory_everywhere", lambda: free and free * GB)
    monkeypatch.setattr(module, "verifier_parameters", lambda model: 10 * GB)
    monkeypatch.setattr(module, "verifier_config", lambda model: SimpleNamespace(num_attention_heads=4))
    monkeypatch.setattr(module, "geometry_of", lambda *words, dtype: SimpleNamespace(item_bytes=2))
    assert module.devices_for("a verifier") == expected


def test_what_is_free_is_asked_by_a_process_that_ends():
    """This machine has no accelerator whose memory torch knows."""
    assert module.free_memory_everywhere() is None


def test_copies_are_as_many_as_the_devices_hold(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    assert [module.copies_of(None, each) for each in (1, 2, 3)] == [8, 4, 2]
    assert module.copies_of(3, 2) == 3
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    assert module.copies_of(None, 4) == 1
