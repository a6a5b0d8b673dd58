"""The live original, as far as it goes without a checkout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parity.prototypes.case import Case
from parity.prototypes.live import request_for

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
