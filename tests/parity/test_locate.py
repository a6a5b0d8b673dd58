"""Faults planted in a layer that the project has never seen are found in the module they are in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import compare_sides, single_step
from tests.parity.example import load, side_with

Plant = Callable[[Any], None]


def biased_query(block: Any) -> None:
    block.attention.wq.register_forward_hook(lambda module, args, out: out + 0.01)


def other_theta(block: Any) -> None:
    block.attention.theta = 500000.0


def coarse_norm(block: Any) -> None:
    block.ffn_norm.eps = 1e-2


def swapped_gates(block: Any) -> None:
    unit = block.feed_forward
    unit.forward = lambda x: unit.w2(unit.w1(x) * nn.functional.silu(unit.w3(x)))


def other_activation(block: Any) -> None:
    unit = block.feed_forward
    unit.forward = lambda x: unit.w2(nn.functional.gelu(unit.w1(x)) * unit.w3(x))


def lost_residual(block: Any) -> None:
    def forward(hidden_states: Tensor, **_: object) -> Tensor:
        x = block.attention(block.attention_norm(hidden_states))
        return x + block.feed_forward(block.ffn_norm(x))

    block.forward = forward


def tiled_heads(block: Any) -> None:
    """Key heads in turn, instead of each for a group."""
    block.attention.share = lambda heads: heads.repeat(1, block.attention.groups, 1, 1)


def blind_to_itself(block: Any) -> None:
    """The mask is off by one, except where nothing would be left."""

    def hidden(length: int) -> Tensor:
        mask = torch.ones(length, length, dtype=torch.bool).triu(0)
        mask[0, 0] = False
        return mask

    block.attention.hidden = hidden


def detached_unit(block: Any) -> None:
    unit = block.feed_forward
    unit.forward = lambda x: type(unit).forward(unit, x.detach())


def detached_residual(block: Any) -> None:
    def forward(hidden_states: Tensor, **_: object) -> Tensor:
        x = hidden_states + block.attention(block.attention_norm(hidden_states))
        return x.detach() + block.feed_forward(block.ffn_norm(x))

    block.forward = forward


def frozen_value(block: Any) -> None:
    block.attention.wv.weight.requires_grad_(False)


def halved_gradient(block: Any) -> None:
    block.attention.wo.register_full_backward_hook(lambda module, into, out: (into[0] * 0.5,))


def unscaled_scores(block: Any) -> None:
    block.attention.wk.register_forward_hook(lambda module, args, out: out * 2)


FAULTS: dict[str, tuple[Plant, str, str]] = {
    "bias in the query": (biased_query, "forward", "attention.wq"),
    "another rope theta": (other_theta, "forward", "attention"),
    "eps of a norm": (coarse_norm, "forward", "ffn_norm"),
    "gate and up swapped": (swapped_gates, "forward", "feed_forward"),
    "another activation": (other_activation, "forward", "feed_forward"),
    "residual left out": (lost_residual, "forward", "(whole)"),
    "key heads in another order": (tiled_heads, "forward", "attention"),
    "mask off by one": (blind_to_itself, "forward", "attention"),
    "keys twice as large": (unscaled_scores, "forward", "attention.wk"),
    "feed-forward's input detached": (detached_unit, "backward", "feed_forward"),
    "residual detached": (detached_residual, "backward", "(whole)"),
    "a weight frozen": (frozen_value, "backward", "attention.wv"),
    "a gradient halved on its way": (halved_gradient, "backward", "attention.wo"),
}


def test_without_a_fault_nothing_is_found() -> None:
    example = load()
    for report in (example.compare(), example.compare_alone()):
        assert report.passed, str(report)
        assert report.first is None


@pytest.mark.parametrize(("plant", "direction", "module"), FAULTS.values(), ids=FAULTS)
def test_the_comparison_names_direction_and_module(plant: Plant, direction: str, module: str) -> None:
    example = load()
    report = compare_sides(example.ORIGINAL, side_with(plant), example.batches(), names=example.NAMES)
    assert not report.passed
    assert report.first is not None
    assert (report.first.direction, report.first.module) == (direction, module), str(report.first)
    assert report.failed[0] == {"forward": "forward", "backward": "gradients"}[direction]


@pytest.mark.parametrize(("plant", "direction", "module"), FAULTS.values(), ids=FAULTS)
def test_a_single_step_finds_the_module_and_no_other(plant: Plant, direction: str, module: str) -> None:
    example = load()
    report = single_step(example.ORIGINAL, side_with(plant), example.batches()[0], names=example.NAMES)
    assert report.first is not None
    assert (report.first.direction, report.first.module) == (direction, module), str(report.first)
    assert {row.run for row in report.rows if row.status.value == "failed"} == {module}
