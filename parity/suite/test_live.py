"""With a checkout: the port and the original's script on the adapter against the live original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parity.plugin import recordings_of
from parity.prototypes.case import find_cases
from parity.prototypes.checks import run_checks
from parity.prototypes.live import prototype_rows
from parity.suite.test_recorded import describe

LIVE = ("eagle3_fp32_k3", "eagle3_fp32_k3_noise")

pytestmark = pytest.mark.prototype


def test_the_checkout_is_the_commit(prototype_dir: Path) -> None:
    assert not describe(prototype_rows(prototype_dir, "eagle3"))


@pytest.mark.parametrize("name", LIVE)
def test_port_against_original(
    name: str, prototype_dir: Path, store: Any, compared: list[Any], pytestconfig: Any
) -> None:
    rows = run_checks(store.live(_case(pytestconfig, name), prototype_dir, "port"))
    compared += rows
    assert not describe(rows)


@pytest.mark.parametrize("name", LIVE)
def test_script_on_adapter(
    name: str, prototype_dir: Path, store: Any, compared: list[Any], adapter_checks: Any, pytestconfig: Any
) -> None:
    rows = run_checks(store.live(_case(pytestconfig, name), prototype_dir, "adapter"), adapter_checks)
    compared += rows
    assert {row.check for row in rows} == set(adapter_checks)
    assert not describe(rows)


def _case(config: pytest.Config, name: str) -> Any:
    chosen = [case for case in find_cases(recordings_of(config)) if case.name == name]
    return chosen[0] if chosen else pytest.skip(f"these recordings have no case {name}")
