"""What two runs are before any step: each planted difference is a row of its own, by name and number."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import NameMap
from parity.setup import broken, compare_setups, groups_of, optimizer_for, rate_of, setup_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 20)
        self.config = SimpleNamespace(_attn_implementation="sdpa")


def adamw(parameters: Any, **changes: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **{"lr": 3e-4, "weight_decay": 0.0, **changes})


def setup(
    change: Callable[[Net], None] = lambda net: None, make: Any = adamw, schedule: Any = None, seed: int = 0
) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = Net()
    change(net)
    optimizer = optimizer_for(make, net)
    return setup_of(net, optimizer, schedule and schedule(optimizer))


def frozen(net: Net) -> None:
    net.up.bias.requires_grad_(False)


def eager(net: Net) -> None:
    net.config._attn_implementation = "flex_attention"


def loud(net: Net) -> None:
    nn.init.normal_(net.down.weight, std=0.2)


def shifted(net: Net) -> None:
    net.down.weight.data += 0.1


def scaled_norm(net: Net) -> None:
    net.norm.weight.data.fill_(1.0001)


def no_statistics(net: Net) -> None:
    net.norm = nn.BatchNorm1d(30, track_running_stats=False)


def in_two(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return adamw([{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.01}])


FAULTS: dict[str, tuple[dict[str, Any], set[tuple[str, str]], str]] = {
    "rate": ({"make": lambda ps: adamw(ps, lr=2.9e-4)}, {("groups", "lr[0]")}, "0.0003 / 0.00029"),
    "decay": ({"make": lambda ps: adamw(ps, weight_decay=0.01)}, {("groups", "weight_decay[0]")}, "0.0 / 0.01"),
    "betas": ({"make": lambda ps: adamw(ps, betas=(0.9, 0.951))}, {("groups", "betas[0]")}, "[0.9, 0.951]"),
    "eps": ({"make": lambda ps: adamw(ps, eps=1e-6)}, {("groups", "eps[0]")}, "1e-08 / 1e-06"),
    "class": ({"make": lambda ps: torch.optim.Adam(ps, lr=3e-4)}, {("optimizer", "")}, "AdamW / Adam"),
    "groups": ({"make": in_two}, {("groups", "number"), ("groups", "parameters[0]")}, "1 / 2"),
    "frozen": ({"change": frozen}, {("requires_grad", "up.bias"), ("groups", "parameters[0]")}, "True / False"),
    "attention": ({"change": eager}, {("attention", "")}, "['sdpa'] / ['flex_attention']"),
    "initial std": ({"change": loud}, {("initial std", "down.weight")}, "/ 0.199"),
    "initial mean": ({"change": shifted}, {("initial mean", "down.weight")}, "/ 0.0"),
    "a constant": ({"change": scaled_norm}, {("initial mean", "norm.weight")}, "1 / 1"),
    "buffers": (
        {"change": no_statistics},
        {("buffers", f"norm.{name}") for name in ("running_mean", "running_var", "num_batches_tracked")},
        "/ None",
    ),
    "schedule": (
        {"schedule": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)},
        {("schedule", ""), ("groups", "initial_lr[0]")},
        "None / ConstantLR",
    ),
}


@pytest.mark.parametrize(("changes", "failed", "words"), FAULTS.values(), ids=FAULTS)
def test_a_difference_is_a_row_of_its_own(changes: Any, failed: set[tuple[str, str]], words: str) -> None:
    rows = compare_setups(setup(), setup(**changes, seed=1))
    wrong = [row for row in rows if not row.passed]
    assert failed <= {(row.quantity, row.tensor) for row in wrong}
    assert words in "; ".join(row.detail for row in wrong)
    others = {(row.quantity, row.tensor) for row in wrong} - failed
    assert others <= {("groups", "decoupled_weight_decay[0]")}


@pytest.mark.parametrize("seed", range(5))
def test_other_seeds_are_no_difference(seed: int) -> None:
    rows = compare_setups(setup(), setup(seed=seed))
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert {row.quantity for row in rows} == {
        "optimizer", "attention", "groups", "requires_grad", "buffers", "initial mean", "initial std"
    }  # fmt: skip


def test_names_go_over_and_what_the_port_alone_has_can_be_named() -> None:
    expected, found = ({"requires_grad": {name: True}} for name in ("a.w", "b.w"))
    found["requires_grad"]["extra"] = True
    assert all(row.passed for row in compare_setups(expected, found, NameMap({"a": "b"}, only_port=["extra"])))
    rows = compare_setups(expected, found, NameMap({"a": "b"}))
    assert [(row.tensor, row.detail) for row in rows if not row.passed] == [("extra", "None / True")]


class Wrapping:
    """An optimizer of somebody's own around two of torch's."""

    def __init__(self, model: nn.Module) -> None:
        halves = list(model.parameters())
        self.model, self.inner = model, {"a": adamw(halves[:1], lr=0.5), "b": [adamw(halves[1:])]}

    def step(self) -> None:
        pass


def of_a_model(module: nn.Module) -> torch.optim.Optimizer:
    return adamw(module.parameters())


def annotated(net: nn.Module) -> torch.optim.Optimizer:
    return adamw(net.parameters())


@pytest.mark.parametrize(
    ("make", "rates"), [(adamw, [3e-4]), (of_a_model, [3e-4]), (annotated, [3e-4]), (Wrapping, [0.5, 3e-4])]
)
def test_optimizers_are_adapted(make: Any, rates: list[float]) -> None:
    optimizer = optimizer_for(make, net := Net())
    assert [group["lr"] for group in groups_of(optimizer)] == rates
    assert rate_of(optimizer) == rates[0]
    assert sum(len(group["params"]) for group in groups_of(optimizer)) == len(list(net.parameters()))
    assert [group["parameters"] for group in setup_of(net, optimizer)["groups"]] == (
        [6] if make is not Wrapping else [1, 5]
    )


def test_what_has_no_parameters_has_no_optimizer() -> None:
    sampler = nn.Dropout()
    assert optimizer_for(adamw, sampler) is None
    assert math.isnan(rate_of(None))
    rows = compare_setups(setup_of(sampler), setup_of(nn.Dropout()))
    assert [row.quantity for row in rows] == ["attention"]


@pytest.mark.parametrize(
    ("weights", "detail"),
    [
        ({"a": torch.ones(3), "ids": torch.tensor([1])}, None),
        (
            {"a": torch.ones(3), "b": torch.tensor([1.0, math.nan, math.inf])},
            "2 NaN or Inf in 1 of 2 before",
        ),
        (
            {"a": torch.full((2,), math.nan), "b": torch.tensor([math.nan])},
            "3 NaN or Inf in 2 of 2 before any step: a, b",
        ),
    ],
)
def test_weights_that_are_not_finite_are_one_row(weights: dict[str, Tensor], detail: str | None) -> None:
    row = broken(weights)
    assert row is None if detail is None else row and row.detail.startswith(detail)
