"""Shared by the harness' tests: the shipped cases, and evidence for a port that may carry a planted fault."""

import shutil
import sys
from contextlib import ExitStack
from functools import cache

import pytest

import parity.cli
from parity import fixtures
from parity.pair import find_pair
from parity.prototypes.case import find_cases, read_case
from parity.run import CaseRun


@pytest.fixture(scope="session")
def cases():
    """The shipped cases by name."""
    return {case.name: case for case in find_cases(fixtures.RECORDINGS)}


@pytest.fixture
def case():
    """Three TTT steps in float32, with final parameters."""
    return read_case(fixtures.RECORDINGS / "eagle3_fp32_k3")


@pytest.fixture
def copy(tmp_path, case):
    """A recording that a test may break."""
    shutil.copytree(case.directory, tmp_path / case.name)
    shutil.copy(case.initial, tmp_path)
    (tmp_path / "fixture").symlink_to(fixtures.FIXTURE)
    return read_case(tmp_path / case.name)


def _evidence_of(case, stack):
    pair = find_pair(case.algorithm)
    return stack.enter_context(CaseRun(pair, case)).evidence(pair.port)


@pytest.fixture
def whole_run(cases):
    """The port's run on a case, as it is patched at that moment."""
    with ExitStack() as stack:
        yield lambda name: _evidence_of(cases[name], stack)


@pytest.fixture(scope="session")
def sound(cases):
    """The same without any fault, run once a session."""
    with ExitStack() as stack:
        yield cache(lambda name: _evidence_of(cases[name], stack))


@pytest.fixture
def recordings():
    """The shipped recordings."""
    return fixtures.RECORDINGS


@pytest.fixture
def command(monkeypatch):
    """Runs a ``parity`` command line here and returns its exit code."""
    monkeypatch.setattr(parity.cli, "hush", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            parity.cli.main()
        return int(stop.value.code or 0)

    return run
