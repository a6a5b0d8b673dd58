"""Numeric modes: set for the body, as they were after it, and written down."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.conftest
from parity.checks import MODES
from parity.environment import PACKAGES, describe, deterministic
from parity.run import Runner, find_pair, silent


@pytest.fixture(params=[False, True], ids=["strict", "warning"])
def other_modes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything that ``deterministic`` sets is set to something else."""
    old = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=request.param)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(old[0])
    torch.set_float32_matmul_precision(old[1])
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)


def modes() -> dict[str, Any]:
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    named = ("threads", "matmul_precision", "default_dtype", "deterministic", "tf32")
    return {**{name: describe()[name] for name in named}, "warn_only": warn_only}


def benchmarked() -> dict[str, Any]:
    info: dict[str, Any] = {}
    benchmarks.conftest.pytest_benchmark_update_machine_info(None, info)  # type: ignore[arg-type]
    found: dict[str, Any] = info["parity"]
    return found


def reported() -> dict[str, Any]:
    return Runner(find_pair("eagle3"), (), silent).report.environment


def draws() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), np.random.rand()


@pytest.mark.usefixtures("other_modes")
def test_modes_are_set_and_restored() -> None:
    before = modes()
    with deterministic():
        assert modes() == {
            "threads": 1,
            "matmul_precision": "highest",
            "default_dtype": "torch.float32",
            "deterministic": True,
            "tf32": False,
            "warn_only": True,
        }
    assert modes() == before
    assert before["threads"] == 2
    assert before["matmul_precision"] == "high"
    assert before["default_dtype"] == "torch.float64"


@pytest.mark.usefixtures("other_modes")
@pytest.mark.parametrize("recorded", [reported, benchmarked], ids=["report", "benchmarks"])
def test_a_result_names_the_modes_that_its_sides_run_in(recorded: Callable[[], dict[str, Any]]) -> None:
    found = recorded()
    assert {name: found[name] for name in MODES} == MODES
    assert describe()["matmul_precision"] == "high"


@pytest.mark.usefixtures("other_modes")
def test_modes_are_restored_after_an_error() -> None:
    before = modes()
    with pytest.raises(KeyError), deterministic():
        raise KeyError
    assert modes() == before


def test_the_number_of_threads_can_be_chosen() -> None:
    with deterministic(threads=2):
        assert torch.get_num_threads() == 2


def test_the_seed_fixes_every_generator() -> None:
    with deterministic(3):
        first = draws()
    with deterministic(3):
        assert draws() == first
    with deterministic(4):
        assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_the_generators_outside_do_not_notice() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    undisturbed = [draws(), draws()]
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    first = draws()
    with deterministic(3):
        draws()
    assert [first, draws()] == undisturbed


def test_the_description_names_versions_and_machine() -> None:
    found = describe(seed=7)
    assert found["torch"] == torch.__version__ or found["torch"] == torch.__version__.partition("+")[0]
    assert all(found[name] for name in PACKAGES if name != "deepspeed")
    assert found["seed"] == 7
    assert found["cores"] >= 1
    assert found["cpu"]


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parity.environment.PACKAGES", ("no-such-package-anywhere",))
    assert describe()["no-such-package-anywhere"] is None
