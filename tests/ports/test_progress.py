"""What a command shows while it works, on a terminal and elsewhere."""

import io
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest import mock

import pytest

from ports import flags, progress
from ports.progress import Work, through
from ports.training.settings import CommandSettings


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What a reader sees: a carriage return goes back, and what comes then stands in the line's place."""
        return [line.replace("\x1b[K", "").rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]


@contextmanager
def terminal():
    """Stdout and stderr are one."""
    stream = Terminal()
    with redirect_stdout(stream), redirect_stderr(stream), mock.patch.object(progress, "TERMINAL", 0.001):
        yield stream


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_terminal_shows_the_innermost_work_at_once_and_what_is_said_above_it():
    with terminal() as shown, Work("training"):
        assert shown.lines() == ["training: 00:00"], "before anything is done"
        print("a line\nanother")
        with Work("saving", 4) as work:
            work.add(3)
            wait_for(lambda: shown.lines()[-1].startswith("saving 3 of 4:  75%|"))
        wait_for(lambda: shown.lines()[-1] == "training: 00:00")
        print("the last")
    assert shown.lines() == ["a line", "another", "the last", ""]


def test_a_broken_terminal_ends_no_work():
    with terminal() as shown, Work("training"):
        shown.close()
        assert sum(through(range(4), "batches")) == 6


def test_elsewhere_there_is_a_line_again_and_again_and_none_too_many(monkeypatch, capsys):
    monkeypatch.setattr(progress, "ELSEWHERE", 0.05)
    begun, said = time.monotonic(), ""
    with Work("answers", 64, done=8) as work:
        work.at(10, 12.0)
        while said.count("\n") < 3:  # nothing of the work says so
            said += capsys.readouterr().err
            time.sleep(0.001)
        most = (time.monotonic() - begun) / 0.05
    lines = said.splitlines()
    assert all(line.startswith("answers 10 of 64:  19%, 00:00, 00:0") for line in lines)
    assert len(lines) <= most
    assert capsys.readouterr().err == ""


def test_what_is_left_is_as_measured_since_the_first_of_it_began(monkeypatch):
    """Not since a model was loaded for it, nor with what was there before."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Work("answers", 64, done=4, shown=False) as work:
        assert work.line() == "answers 4 of 64:   6%, 00:00, ? left"
        with Work("loading the verifier"):
            now[0] += 1000
        now[0] += 20
        work.at(5, 14.0)
        assert work.line() == "answers 5 of 64:  22%, 00:20, 01:40 left"
        with Work("saving"):
            now[0] += 20
        assert work.line() == "answers 5 of 64:  22%, 00:40, 03:20 left"


class Settings(CommandSettings):
    """Anything."""

    progress: bool = True


@pytest.mark.parametrize(("words", "hidden"), [([], False), (["--no-progress"], True)])
def test_a_command_is_work_unless_it_is_told_to_show_nothing(words, hidden):
    def act(settings):
        wait_for(lambda: stream.lines()[-1] == ("" if hidden else "working: 00:00"))
        with Work("more") as work:
            assert work.shown is not hidden
        return 0

    with terminal() as stream:
        assert flags.run(flags.command(Settings, act), words) == 0
        assert sys.stdout is sys.stderr is stream, "as they were"
