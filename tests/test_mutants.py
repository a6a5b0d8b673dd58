"""The judge of the mutants: what comes out of a reader, and when."""

import time

import pytest

import tests.mutants as mutants
from ports.errors import InputError


def swallow_everything(read):
    """A reader that makes bad input of whatever it meets."""
    try:
        read()
    except Exception as error:
        raise InputError("file", "field", str(error), "a file") from error


def spin():
    while True:
        pass


@pytest.mark.parametrize(
    ("limits", "read"),
    [({"SECONDS": 0.2}, spin), ({"STANDSTILL": 0.2}, lambda: time.sleep(60))],
    ids=["busy", "asleep"],
)
def test_a_hang_is_no_refusal(monkeypatch, limits, read):
    for name, value in limits.items():
        monkeypatch.setattr(mutants, name, value)
    tally = mutants.Tally()
    with pytest.raises(AssertionError, match=r"a mutant: TooLongError: more than 0\.2 s"), tally.one("a mutant"):
        swallow_everything(read)
    assert (tally.refused, tally.accepted) == (0, 0)


def test_what_comes_out_is_counted():
    tally = mutants.Tally()
    with tally.one("one"):
        pass
    with tally.one("two"):
        raise InputError("file", "field", "found", "expected")
    with pytest.raises(AssertionError, match="three: KeyError: 'deep'"), tally.one("three"):
        raise KeyError("deep")
    assert (tally.refused, tally.accepted) == (1, 1)


def test_an_executed_mutant_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 50)
    with pytest.raises(AssertionError, match="was executed"):
        mutants.try_all(file, (tmp_path / "executed").touch, tmp_path)
    assert file.read_bytes() == b"x" * 50
