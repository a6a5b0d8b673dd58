"""Shared by the harness' tests: the shipped cases, and evidence for a port that may carry a planted fault."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fixtures
import parity.cli
from parity.case import Case, find_cases, read_case
from parity.checks.evidence import Evidence
from parity.judge import PORT, recorded_baseline
from tests.parity.toys import copy_toys, seal


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """The shipped cases by name."""
    return {case.name: case for case in find_cases(fixtures.RECORDINGS)}


@pytest.fixture
def case() -> Case:
    """Three TTT steps in float32, with final parameters."""
    return read_case(fixtures.RECORDINGS / "eagle3_fp32_k3")


@pytest.fixture
def port_evidence() -> Iterator[Callable[[Case], Evidence]]:
    """Runs the port on a case, as it is patched at that moment."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def run(case: Case) -> Evidence:
            found, expected = stack.enter_context(recorded_baseline(case))
            return stack.enter_context(PORT.evidence(found, expected))

        yield run


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Roots of the toy originals by name, which the hash table takes for the real ones."""
    roots = copy_toys(tmp_path / "toys")
    for name, root in roots.items():
        seal(root, name, monkeypatch)
    return roots


@pytest.fixture
def recordings() -> Path:
    """The shipped recordings."""
    return fixtures.RECORDINGS


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a ``parity`` command line here and returns its exit code."""
    monkeypatch.setattr("ports.commands.hush_libraries", lambda: None)

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            parity.cli.main()
        return int(stop.value.code or 0)

    return run
