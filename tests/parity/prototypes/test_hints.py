"""Planted faults are found in the module they were planted in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.hints import hint, localise
from parity.verdict import Row, Status
from tests.parity.faults import FAULTS, Plant, change_draft


def planted(name: str) -> Plant:
    return next(fault.plant for fault in FAULTS if fault.name == name)


def detach_mlp_input(draft: Any) -> None:
    mlp = draft.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x.detach())


def shift_down_proj(draft: Any) -> None:
    draft.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: out + 1e-2)


def forget_head(draft: Any) -> None:
    draft.norm.register_forward_hook(lambda module, args, out: torch.nan * out)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (planted("own-position keys off"), ("forward", "layers.0.self_attn", 2)),
        (planted("residual un-normed"), ("forward", "layers.0", 0)),
        (planted("wrong rope scaling"), ("forward", "layers.0.self_attn", 0)),
        (planted("one weight detached"), ("backward", "norm", 0)),
        (planted("lm_head frozen"), ("backward", "lm_head", 0)),
        (planted("Adam beta off"), None),
        (change_draft(detach_mlp_input), ("backward", "layers.0.mlp", 2)),
        (change_draft(shift_down_proj), ("forward", "layers.0.mlp.down_proj", 0)),
        (change_draft(forget_head), ("forward", "norm", 0)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_fault_is_found_where_it_is(plant: Plant, found: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    finding = localise(case)
    assert (finding and (finding.direction, finding.module, finding.call)) == found


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "hass_fp32_k3", "eagle3_bf16ds_k3", "hass_bf16_k3"])
def test_without_a_fault_nothing_is_found(name: str, cases: dict[str, Case]) -> None:
    assert localise(cases[name]) is None


def test_in_half_precision_rounding_is_not_taken_for_the_fault(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted("own-position keys off")(monkeypatch)
    assert "forward first goes wrong in layers.0.self_attn, call 2" in str(localise(cases["eagle3_bf16ds_k3"]))


@pytest.mark.parametrize(("check", "told"), [("gradients", "module by module both sides agree"), ("hits", "")])
def test_a_failed_row_of_a_module_s_numbers_has_a_hint(check: str, told: str, sound: Callable[[str], Evidence]) -> None:
    row = Row(check, "one", "port", "q", "t", 1.0, 0.0, Status.FAILED)
    assert hint(row, sound("eagle3_fp32_k3")).startswith(told)
    assert not hint(row, replace(sound("eagle3_fp32_k3"), live=None))
