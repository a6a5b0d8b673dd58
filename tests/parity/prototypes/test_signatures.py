"""Known deviations are recognised by their numbers, and other failures are not taken for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from parity.evidence import Evidence
from parity.prototypes.case import Case
from parity.prototypes.recorded import load_recorded
from parity.prototypes.reference.loop import Visits
from parity.prototypes.reference.setup import prepare
from parity.prototypes.signatures import hint_for
from parity.tolerances import tables
from parity.verdict import Row, Status


def failed(check: str) -> Row:
    return Row(check, "one", "port", "q", "t", 1.0, 0.0, Status.FAILED)


@pytest.fixture
def evidence(case: Case) -> Evidence:
    expected = load_recorded(case)
    found = replace(expected, run="port", tensors=dict(expected.tensors))
    return Evidence(case, expected, found, tables()["prototype_fp32"])


@pytest.mark.parametrize("by", [1, -1])
def test_a_mask_moved_by_one_is_recognised(by: int, evidence: Evidence) -> None:
    mask = torch.roll(evidence.expected.tensors["mb0.batch.loss_mask"], by, dims=1)
    mask[:, -1] = 0
    evidence.found.tensors["mb0.batch.loss_mask"] = mask
    assert hint_for(failed("batches"), evidence).startswith("unshifted-mask")
    assert hint_for(failed("forward"), evidence) == ""


@pytest.mark.parametrize("change", [lambda mask: 1 - mask, lambda mask: torch.roll(mask, 5, dims=1), lambda mask: mask])
def test_another_mask_is_not_taken_for_it(change: Callable[[torch.Tensor], torch.Tensor], evidence: Evidence) -> None:
    evidence.found.tensors["mb0.batch.loss_mask"] = change(evidence.expected.tensors["mb0.batch.loss_mask"])
    assert hint_for(failed("batches"), evidence) == ""


@pytest.mark.parametrize("found", [None, torch.ones(1, 2)])
def test_without_a_mask_to_compare_there_is_no_hint(found: torch.Tensor | None, evidence: Evidence) -> None:
    del evidence.found.tensors["mb0.batch.loss_mask"]
    if found is not None:
        evidence.found.tensors["mb0.batch.loss_mask"] = found
    assert hint_for(failed("batches"), evidence) == ""


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "hass_fp32_k3"])
def test_keys_of_the_chain_are_recognised(name: str, cases: dict[str, Case]) -> None:
    case, expected = cases[name], load_recorded(cases[name])
    setup = prepare(case)
    out = setup.forward(setup.weights(), next(Visits(case).batches_of_pass(0)), own_position=False)
    chain = {f"mb0.step{s}.logits": step.logits.detach() for s, step in enumerate(out.steps)}
    found = replace(expected, run="port", tensors={**expected.tensors, **chain})
    evidence = Evidence(case, expected, found, lambda: expected)
    assert hint_for(failed("forward"), evidence).startswith("own-position-kv")
    found.tensors["mb0.step2.logits"] = chain["mb0.step2.logits"] + 0.1
    assert hint_for(failed("forward"), evidence) == ""


def test_own_position_keys_are_not_taken_for_the_chain(evidence: Evidence) -> None:
    assert hint_for(failed("forward"), evidence) == ""


@pytest.mark.parametrize("gone", ["mb0.step2.logits", "mb0.batch.attention_mask"])
def test_without_logits_or_a_mask_there_is_no_hint(gone: str, evidence: Evidence) -> None:
    evidence.found.tensors.pop(gone)
    if gone.endswith("logits"):
        assert hint_for(failed("forward"), evidence) == ""
    else:
        evidence.found.tensors["mb0.step2.logits"] = torch.ones(1, 1, 1)
        assert hint_for(failed("forward"), evidence) == ""


def test_the_last_micro_batch_alone_is_recognised(cases: dict[str, Case]) -> None:
    case = cases["eagle3_fp32_k3_ga2"]
    expected = load_recorded(case)
    evidence = Evidence(case, expected, replace(expected, run="port", tensors=dict(expected.tensors)), lambda: expected)
    assert hint_for(failed("gradients"), evidence).startswith("accumulation-wipe")
    name = f"mb{evidence.micro_batches()[-1]}.grad.fc.weight"
    evidence.found.tensors[name] = evidence.found.tensors[name] * 2
    assert hint_for(failed("gradients"), evidence) == ""


def test_without_accumulation_nothing_was_wiped(evidence: Evidence) -> None:
    assert hint_for(failed("gradients"), evidence) == ""
