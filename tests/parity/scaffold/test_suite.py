"""The suite of a laid-out port, on one that is its own original: green, and red by name when a fault is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ports.training.runs
from parity.verdict import Report

NAME = "suite_port"


@pytest.fixture(scope="module")
def package(lay_out: Callable[[str], str]) -> str:
    """Laid out and importable."""
    return lay_out(NAME)


@pytest.fixture
def suite(package: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its tests, with the port in the prototype's place."""
    compare, tests = (import_module(f"{package}.{name}") for name in ("compare", "tests.test_parity"))
    original = replace(compare.PORT, name="prototype")
    monkeypatch.setattr(compare, "PAIR", replace(compare.PAIR, original=original))
    for module in (compare, tests):
        monkeypatch.setattr(module, "ORIGINAL", original)
    return tests


@pytest.fixture
def train(package: str) -> ModuleType:
    return import_module(f"{package}.train")


def steps(suite: ModuleType) -> list[str]:
    """The checks of the step-by-step test, from its own parametrisation."""
    return list(suite.test_step.pytestmark[0].args[1])


def test_it_is_green_on_its_own_original(suite: ModuleType, tmp_path: Path) -> None:
    suite.test_the_original_runs()
    report = suite.compare()
    assert {*steps(suite), "original", "command"} == {*suite.ADVICE}
    for check in steps(suite):
        suite.test_step(check, report)
    suite.test_the_command_trains_like_the_original(tmp_path / "a")
    suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path / "b")


def test_a_step_says_what_to_do_and_those_after_it_wait(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = import_module(f"{NAME}.compare")
    doubled = replace(compare.PORT, loss=lambda draft, batch: 2 * compare.loss(draft, batch))
    monkeypatch.setattr(compare, "PAIR", replace(compare.PAIR, port=doubled))
    report = suite.compare()
    suite.test_step("forward", report)
    with pytest.raises(pytest.fail.Exception, match="next step, loss:\nThe outputs are the original's"):
        suite.test_step("loss", report)
    with pytest.raises(AssertionError, match="an earlier step comes first"):
        suite.test_step("gradients", report)


def test_a_check_without_rows_is_no_success(suite: ModuleType) -> None:
    with pytest.raises(AssertionError):
        suite.test_step("forward", replace(suite.compare(), report=Report()))


def test_a_command_that_trains_something_else(
    suite: ModuleType, train: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = train.build_objective

    def longer(settings: Any, draft: Any) -> Any:
        return build(settings.model_copy(update={"forward_num_total": 4}), draft)

    monkeypatch.setattr(train, "build_objective", longer)
    with pytest.raises(pytest.fail.Exception, match="next step, command:\nThe parts are right"):
        suite.test_the_command_trains_like_the_original(tmp_path)


def test_a_command_that_resumes_from_the_weights_alone(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports.training.runs, "resume", lambda loop, checkpoint, keeper: None)
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor(
    suite: ModuleType, train: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = import_module(f"{NAME}.model").SuitePortModel
    monkeypatch.setattr(model, "_keys_to_ignore_on_save", [*model._keys_to_ignore_on_save, "fc.bias"])
    with pytest.raises(AssertionError, match=r"fc\.bias"):
        suite.test_the_command_resumes_exactly_and_speculators_opens_its_checkpoint(tmp_path)
