"""A step that got slower fails the benchmarks: ``--benchmark-compare-fail`` sees the times that were measured."""

import pytest

import benchmarks.test_training_step  # noqa: F401  (else every inner session loads torch anew)

pytest_plugins = ["pytester"]

STEP = """
import pytest
from benchmarks.race import Measured
from benchmarks.shapes import Shape
from benchmarks.test_training_step import test_step

@pytest.fixture
def shape():
    return Shape("eagle3", 64, 1)

@pytest.fixture
def side():
    return "port"

@pytest.fixture
def races():
    return lambda shape: {"port": Measured(shape, "port", 1.0, 1, 0.0, SECONDS)}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """pytest-benchmark measures nothing in a worker of several."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


GATE = ("--benchmark-compare", "--benchmark-compare-fail=min:10%")


def write(pytester, seconds):
    pytester.makepyfile(test_it=STEP.replace("SECONDS", str(seconds)))


@pytest.mark.parametrize(("seconds", "slower"), [([0.3, 0.21], False), ([0.3, 0.23], True)])
def test_ten_percent_more_than_the_fastest_step_fails(seconds, slower, pytester):
    write(pytester, [0.2, 0.25])
    assert pytester.runpytest_inprocess(*GATE).ret != 0, "nothing to compare with is no pass"
    assert pytester.runpytest_inprocess("--benchmark-save=before").ret == 0
    write(pytester, seconds)
    result = pytester.runpytest_inprocess(*GATE)
    assert (result.ret != 0) is slower
    assert ("Performance has regressed" in result.stderr.str()) is slower
