"""The live original, as far as it goes without a checkout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.checks import CHECKS
from parity.prototypes.live import ADAPTER_CHECKS, adapter_side, original_baseline, prototype_rows, request_for
from parity.prototypes.recorded import load_recorded
from tests.parity.folders import write_checkout

SHARED = {
    "fixture": "fixture",
    "case": "name",
    "algorithm": "algorithm",
    "dtype": "dtype",
    "lr": "lr",
    "bs": "bs",
    "gradient_accumulation_steps": "accumulation",
    "epoch": "epoch",
    "topk": "topk",
    "forward_num_total": "ttt_steps",
    "noise": "noise",
    "shuffle": "shuffle",
    "initial_weights": "initial",
}


@pytest.mark.parametrize("name", ["eagle3_fp32_k3_ga2", "eagle3_bf16ds_k3", "eagle3_fp32_k3_noise", "hass_bf16_k3"])
def test_a_request_asks_for_what_the_case_was(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases[name]
    request = request_for(case, Path("checkout"), tmp_path)
    assert {field: getattr(request, field) for field in SHARED} == {
        field: getattr(case, own) for field, own in SHARED.items()
    }
    assert (request.prototype, request.folder) == (Path("checkout"), tmp_path / name)
    assert request.draft_config == case.configpath
    assert request.data == case.tmpdir


def test_only_what_draws_is_seeded(case: Case, tmp_path: Path) -> None:
    seeds = [
        request_for(replace(case, noise=noise, shuffle=shuffle), tmp_path, tmp_path).seed
        for noise in (False, True)
        for shuffle in (False, True)
    ]
    assert seeds == [None, 0, 0, 0]


def test_a_request_can_be_changed(case: Case, tmp_path: Path) -> None:
    request = request_for(case, tmp_path, tmp_path, redirect="ports.eagle3.adapter", max_optimizer_steps=3)
    assert (request.redirect, request.max_optimizer_steps) == ("ports.eagle3.adapter", 3)
    assert request_for(case, tmp_path, tmp_path).redirect is None


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_a_folder_without_the_prototypes_is_refused(algorithm: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"research/{algorithm}: found no such folder, expected a checkout"):
        prototype_rows(tmp_path, algorithm)


def test_files_that_are_not_the_commit_s_fail_one_by_one(tmp_path: Path) -> None:
    files = write_checkout(tmp_path, "eagle3")
    rows = prototype_rows(tmp_path, "eagle3")
    assert [row.passed for row in rows] == [False] * len(files)
    assert {row.tensor for row in rows} == set(files)
    assert all(row.check == "environment" and "found" in row.detail for row in rows)


@pytest.mark.parametrize("side", ["original", "adapter"])
def test_the_original_without_a_checkout_is_refused(side: str, case: Case, tmp_path: Path) -> None:
    expected = load_recorded(case)
    context = original_baseline(tmp_path)(case) if side == "original" else adapter_side(tmp_path)(case, expected)
    with pytest.raises(InputError, match="found"), context:
        pass


def test_the_script_on_the_adapter_is_held_to_known_checks() -> None:
    assert set(ADAPTER_CHECKS) <= {check.name for check in CHECKS}
