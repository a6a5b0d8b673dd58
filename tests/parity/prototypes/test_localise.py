"""Planted faults are found in the module they were planted in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from parity.calls import call_of
from parity.locate import Finding, first_backward, first_forward, within
from parity.prototypes.case import Case
from parity.prototypes.localise import AGREE, Passages, localise, part, sentence
from tests.parity.faults import FAULTS, Plant, change_draft


def planted(name: str) -> Plant:
    return next(fault.plant for fault in FAULTS if fault.name == name)


def detach_mlp_input(draft: Any) -> None:
    mlp = draft.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x.detach())


def halve_mlp(draft: Any) -> None:
    mlp = draft.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x) * 0.5


def shift_down_proj(draft: Any) -> None:
    draft.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: out + 1e-2)


def forget_head(draft: Any) -> None:
    draft.norm.register_forward_hook(lambda module, args, out: torch.nan * out)


@pytest.mark.parametrize(
    ("plant", "direction", "module", "step"),
    [
        (planted("own-position keys off"), "forward", "layers.0.self_attn", 2),
        (planted("residual un-normed"), "forward", "layers.0", 0),
        (planted("wrong rope scaling"), "forward", "layers.0.self_attn", 0),
        (planted("one weight detached"), "backward", "norm", 0),
        (planted("lm_head frozen"), "backward", "lm_head", 0),
        (change_draft(detach_mlp_input), "backward", "layers.0.mlp", 2),
        (change_draft(halve_mlp), "forward", "layers.0.mlp", 0),
        (change_draft(shift_down_proj), "forward", "layers.0.mlp.down_proj", 0),
        (change_draft(forget_head), "forward", "norm", 0),
    ],
    ids=lambda value: value if isinstance(value, str | int) else "",
)
def test_a_fault_is_found_where_it_is(
    plant: Plant, direction: str, module: str, step: int, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    finding = localise(case)
    assert finding is not None
    assert (finding.direction, finding.module, finding.call) == (direction, module, step)


@pytest.mark.parametrize("name", ["eagle3_fp32_k1", "eagle3_fp32_k3", "hass_fp32_k1", "hass_fp32_k3"])
def test_without_a_fault_nothing_is_found(name: str, cases: dict[str, Case]) -> None:
    assert localise(cases[name]) is None


def test_a_fault_outside_the_first_batch_s_forward_is_not_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    planted("Adam beta off")(monkeypatch)
    assert localise(case) is None


def test_a_finding_reads_as_a_sentence() -> None:
    text = sentence(Finding("forward", "forward", "layers.0", 2, "largest at (0,)"))
    assert text == "forward: inputs of layers.0 agree at TTT step 2, its outputs do not; largest at (0,)"


def passages(*names: str) -> Passages:
    """Modules in a chain, each doubling its input."""
    found, value = Passages(), torch.ones(3, requires_grad=True)
    for name in names:
        out = value * 2
        found.add(name, 0, value, out)
        value = out
    value.sum().backward()
    return found


def test_a_module_that_is_never_called_is_named() -> None:
    finding = part(passages("a", "b"), passages("a"))
    assert finding is not None
    assert (finding.module, finding.detail) == ("b", "the port never makes this call")


def test_another_shape_is_a_difference() -> None:
    other = passages("a", "b")
    other.calls[1] = replace(other.calls[1], out={"": torch.ones(4)})
    finding = part(passages("a", "b"), other)
    assert finding is not None
    assert (finding.module, finding.detail) == ("b", "shape (4,), expected (3,)")


def test_a_wrong_input_is_somebody_else_s_fault() -> None:
    other = passages("a", "b", "c")
    other.calls[0] = call_of("a", 0, torch.ones(3), torch.full((3,), 7.0))
    other.calls[1] = call_of("b", 0, torch.full((3,), 7.0), torch.full((3,), 7.0))
    finding = first_forward(passages("a", "b", "c").calls, other.calls, within(AGREE))
    assert finding is not None
    assert finding.module == "a"


def test_backward_names_the_module_nearest_to_the_loss() -> None:
    expected, found = passages("a", "b", "c"), passages("a", "b", "c")
    for call in found.calls[:2]:
        call.into_grad[""] = call.into_grad[""] * 3
    finding = first_backward(expected.calls, found.calls, ({}, {}), within(AGREE))
    assert finding is not None
    assert (finding.direction, finding.module) == ("backward", "b")


def test_a_parameter_s_own_gradient_is_looked_at_last() -> None:
    expected, found = passages("a"), passages("a")
    expected.gradients, found.gradients = {"a.weight": torch.ones(2)}, {}
    finding = part(expected, found)
    assert finding is not None
    assert finding.module == "a"
    assert finding.detail == "gradient of a.weight: the port has none"
