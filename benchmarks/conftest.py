"""Which shapes and sides are timed, and the races behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.race import Measured, race, run_original
from benchmarks.shapes import FULL, QUICK, Shape, sides_of
from parity.environment import described

Races = Callable[[Shape], "dict[str, Measured]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all lengths, TTT steps, bfloat16 and two threads: hours")
    parser.addoption("--sides", help='only these, e.g. "reference,port"; what remains has no other loss to agree with')
    parser.addoption("--rounds", type=int, default=3, help="optimizer steps of every side, in turn (default: 3)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for every shape and side."""
    if {"shape", "side"} <= set(metafunc.fixturenames):
        shapes = FULL if metafunc.config.getoption("--full") else QUICK
        pairs = [(shape, side) for shape in shapes for side in chosen_sides(metafunc.config, shape)]
        absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run on a machine with one")
        marks = {"cuda": [pytest.mark.gpu, absent], "cpu": []}
        params = [pytest.param(*pair, id="-".join(map(str, pair)), marks=marks[pair[0].device]) for pair in pairs]
        metafunc.parametrize(("shape", "side"), params)


def chosen_sides(config: pytest.Config, shape: Shape) -> list[str]:
    """Those that can take the shape and were not left out."""
    sides = sides_of(shape, original=config.getoption("--prototype") is not None)
    wanted = config.getoption("--sides")
    return [side for side in sides if wanted is None or side in wanted.split(",")]


@pytest.fixture(scope="session")
def races(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Races:
    """What every side measured on a shape; the first that asks has them run, in turn, the original before and after."""
    fixtures, rounds = tmp_path_factory.mktemp("fixtures"), request.config.getoption("--rounds")
    prototype = request.config.getoption("--prototype")

    @functools.cache
    def run(shape: Shape) -> dict[str, Measured]:
        sides = chosen_sides(request.config, shape)
        live = [run_original(shape, Path(prototype), rounds, fixtures)] if "original" in sides else []
        measured = race(shape, [side for side in sides if side != "original"], rounds, fixtures)
        for first in live:
            second = run_original(shape, Path(prototype), rounds, fixtures)
            first.seconds += second.seconds
            first.peak_bytes = max(first.peak_bytes, second.peak_bytes)
            measured["original"] = first
        return measured

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Versions and the numeric modes that every side is timed in go into the JSON."""
    machine_info["parity"] = described()
