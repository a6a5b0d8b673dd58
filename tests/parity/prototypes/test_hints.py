"""Planted faults are found in the module they were planted in; known deviations are recognised by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parity.evidence import Evidence
from parity.locate import Finding
from parity.prototypes.case import Case
from parity.prototypes.hints import hint, localise, sentence
from parity.prototypes.recorded import load_recorded
from parity.prototypes.reference.data import batches_of_pass
from parity.prototypes.reference.loop import prepare
from parity.tolerances import tables
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


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "hass_fp32_k3"])
def test_without_a_fault_nothing_is_found(name: str, cases: dict[str, Case]) -> None:
    assert localise(cases[name]) is None


def test_a_finding_reads_as_a_sentence() -> None:
    text = sentence(Finding("forward", "forward", "layers.0", 2, "largest at (0,)"))
    assert text == "forward: inputs of layers.0 agree at TTT step 2, its outputs do not; largest at (0,)"


Tensors = dict[str, torch.Tensor]
MASK, LOGITS, GRAD = "mb0.batch.loss_mask", "mb0.step2.logits", "mb1.grad.fc.weight"


def rolled(by: int) -> Callable[[Case, Tensors], None]:
    def change(case: Case, tensors: Tensors) -> None:
        tensors[MASK] = torch.roll(tensors[MASK], by, dims=1)
        tensors[MASK][:, -1] = 0

    return change


def chain(off: float = 0.0) -> Callable[[Case, Tensors], None]:
    def change(case: Case, tensors: Tensors) -> None:
        setup = prepare(case)
        out = setup.forward(setup.weights(), next(batches_of_pass(case, 0)), own_position=False)
        tensors[LOGITS] = out.steps[-1].logits.detach() + off

    return change


def puts(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Case, Tensors], None]:
    return lambda case, tensors: tensors.update({name: value(tensors[name])})


def nothing(case: Case, tensors: Tensors) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "check", "change", "known"),
    [
        ("eagle3_fp32_k3", "batches", rolled(1), "unshifted-mask"),
        ("eagle3_fp32_k3", "batches", rolled(-1), "unshifted-mask"),
        ("eagle3_fp32_k3", "forward", rolled(1), ""),
        ("eagle3_fp32_k3", "batches", rolled(5), ""),
        ("eagle3_fp32_k3", "batches", puts(MASK, lambda mask: 1 - mask), ""),
        ("eagle3_fp32_k3", "batches", nothing, ""),
        ("eagle3_fp32_k3", "batches", lambda case, tensors: tensors.pop(MASK), ""),
        ("eagle3_fp32_k3", "batches", puts(MASK, lambda mask: torch.ones(1, 2)), ""),
        ("eagle3_fp32_k3", "forward", chain(), "own-position-kv"),
        ("hass_fp32_k3", "forward", chain(), "own-position-kv"),
        ("hass_fp32_k3", "forward", chain(off=0.1), ""),
        ("eagle3_fp32_k3", "forward", nothing, ""),
        ("eagle3_fp32_k3", "forward", lambda case, tensors: tensors.pop(LOGITS), ""),
        ("eagle3_fp32_k3", "forward", puts(LOGITS, lambda logits: torch.ones(1, 1, 1)), ""),
        ("eagle3_fp32_k3_ga2", "gradients", nothing, "accumulation-wipe"),
        ("eagle3_fp32_k3_ga2", "gradients", puts(GRAD, lambda grad: grad * 2), ""),
        ("eagle3_fp32_k3", "gradients", nothing, ""),
    ],
)
def test_known_deviations_are_recognised_and_others_are_not_taken_for_them(
    name: str, check: str, change: Callable[[Case, Tensors], object], known: str, cases: dict[str, Case]
) -> None:
    case, expected = cases[name], load_recorded(cases[name])
    found = replace(expected, run="port", tensors=dict(expected.tensors))
    change(case, found.tensors)
    row = Row(check, "one", "port", "q", "t", 1.0, 0.0, Status.FAILED)
    said = hint(row, Evidence(case, expected, found, tables()["prototype_fp32"]))
    assert said.partition(":")[0] == known
