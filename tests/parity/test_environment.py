"""Numeric modes: set for the body, as they were after it, and written down."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks.conftest
from parity import Side, trace_side
from parity.checks import MODES
from parity.environment import PACKAGES, describe, deterministic
from parity.pair import find_pair
from parity.run import Runner


@pytest.fixture(params=[False, True], ids=["strict", "warning"])
def other_modes(request):
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


def modes():
    found = describe()
    return {name: found[name] for name in MODES}, torch.is_deterministic_algorithms_warn_only_enabled()


def benchmarked():
    info = {}
    benchmarks.conftest.pytest_benchmark_update_machine_info(None, info)
    return dict(info["parity"])


def reported():
    return Runner(find_pair("eagle3"), ()).report.environment


def draws():
    return torch.rand(1).item(), random.random(), np.random.rand()


@pytest.mark.usefixtures("other_modes")
def test_modes_are_set_and_restored_after_an_error_too():
    before = modes()
    other = {"threads": 2, "matmul_precision": "high", "default_dtype": "torch.float64"}
    assert before[0] == {**MODES, **other, "tf32": before[0]["tf32"]}
    with deterministic():
        assert modes() == (MODES, True)
    with deterministic(threads=3):
        assert torch.get_num_threads() == 3
    assert modes() == before
    with pytest.raises(KeyError), deterministic():
        raise KeyError
    assert modes() == before


@pytest.mark.usefixtures("other_modes")
@pytest.mark.parametrize("recorded", [reported, benchmarked], ids=["report", "benchmarks"])
def test_a_result_names_the_modes_that_its_sides_run_in(recorded):
    found = recorded()
    assert {name: found[name] for name in MODES} == MODES
    assert describe()["matmul_precision"] == "high"


def test_the_seed_fixes_every_generator_and_those_outside_do_not_notice():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    undisturbed = [draws(), draws()]
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    seen = [draws()]
    inside = []
    for seed in (3, 3, 4):
        with deterministic(seed):
            inside.append(draws())
    assert [*seen, draws()] == undisturbed
    assert inside[0] == inside[1]
    assert all(one != other for one, other in zip(inside[0], inside[2], strict=True))


def test_the_description_names_versions_and_machine(monkeypatch):
    monkeypatch.setattr("parity.environment.PACKAGES", (*PACKAGES, "no-such-package-anywhere"))
    found = describe(seed=7)
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert all(found[name] for name in (*PACKAGES, "cpu", "cores") if name != "deepspeed")
    assert found["no-such-package-anywhere"] is None
    assert found["seed"] == 7


def test_the_device_is_the_run_s_not_the_machine_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    idle = SimpleNamespace(is_capturing=lambda: False)  # an optimizer asks, and a build for CUDA would want a driver
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *device: idle)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # how torch 2.9 asks
    assert describe()["device"] == trace_side(Side(lambda: nn.Linear(3, 3)), [torch.ones(2, 3)]).environment["device"]
    assert describe()["device"] == "cpu"
    assert describe(device="cuda")["device"] == "a card"
