"""What two runs are before any step: each planted difference is a row of its own, by name and number."""

import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from parity import Fused, NameMap
from parity.compare import RowKey
from parity.setup import groups_of, initial_rows, optimizer_for, rate_of, setting_rows, setup_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 20)
        self.config = SimpleNamespace(_attn_implementation="sdpa")


def adamw(parameters, **changes):
    return torch.optim.AdamW(parameters, **{"lr": 3e-4, "weight_decay": 0.0, **changes})


def setup(change=lambda net: None, make=adamw, seed=0):
    torch.manual_seed(seed)
    net = Net()
    change(net)
    optimizer = optimizer_for(make, net)
    return setup_of(net, optimizer)


def rows_of(expected, found, names=None):
    subject, names = RowKey("configuration", "one", "port"), names or NameMap()
    return [*setting_rows(subject, expected, found, names), *initial_rows(subject, expected, found, names)]


def eager(net):
    net.config._attn_implementation = "flex_attention"


class Preset(torch.optim.AdamW):
    """The same optimizer, made in another way."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=3e-4, weight_decay=0.0)


class Halved(Preset):
    def step(self, closure=None):
        return None


FAULTS = {
    "rate": ({"make": lambda ps: adamw(ps, lr=2.9e-4)}, "groups.0.lr", "found 0.00029, expected 0.0003"),
    "betas": ({"make": lambda ps: adamw(ps, betas=(0.9, 0.951))}, "groups.0.betas", "found [0.9, 0.951]"),
    "eps": ({"make": lambda ps: adamw(ps, eps=1e-6)}, "groups.0.eps", "found 1e-06, expected 1e-08"),
    "class": ({"make": lambda ps: torch.optim.Adam(ps, lr=3e-4)}, "optimizer", "found 'Adam', expected 'AdamW'"),
    "step": ({"make": Halved}, "optimizer", "found 'Halved', expected 'AdamW'"),
    "frozen": ({"change": lambda net: net.up.bias.requires_grad_(False)}, "requires_grad.up.bias", "found False"),
    "attention": ({"change": eager}, "attention", "found ['flex_attention'], expected ['sdpa']"),
    "initial std": ({"change": lambda net: nn.init.normal_(net.down.weight, std=0.2)}, "down.weight", "/ 0.199"),
    "initial mean": ({"change": lambda net: net.down.weight.data.add_(0.1)}, "down.weight", "/ 0.0"),
    "a constant": ({"change": lambda net: net.norm.weight.data.fill_(1.0001)}, "norm.weight", "1 / 1"),
    "left NaN": ({"change": lambda net: net.down.weight.data.fill_(math.nan)}, "down.weight", "/ nan"),
    "buffers": ({"change": lambda net: net.norm.double()}, "buffers.norm.running_mean", "found 'torch.float64 [30]'"),
}


@pytest.mark.parametrize(("changes", "name", "words"), FAULTS.values(), ids=FAULTS)
def test_a_difference_is_a_row_of_its_own(changes, name, words):
    wrong = [row for row in rows_of(setup(), setup(**changes, seed=1)) if not row.passed]
    assert any(row.tensor == name and words in row.detail for row in wrong), wrong
    allowed = {name.partition(".")[0], "groups" if "make" in changes else ""}
    assert {row.tensor.partition(".")[0] for row in wrong} <= allowed


@pytest.mark.parametrize("seed", range(5))
def test_other_seeds_are_no_difference(seed):
    rows = rows_of(setup(), setup(seed=seed))
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert {row.quantity for row in rows} == {"configuration", "initial mean", "initial std"}
    said = {row.tensor.partition(".")[0] for row in rows if row.quantity == "configuration"}
    assert said == {"optimizer", "attention", "groups", "requires_grad", "buffers"}


def test_a_class_that_only_makes_an_optimizer_is_no_difference():
    for expected, found in permutations((setup(), setup(make=Preset))):
        assert [row for row in rows_of(expected, found) if not row.passed] == []


def test_names_go_over_and_a_parameter_of_one_side_alone_is_no_setting():
    expected = {"requires_grad": {"a.w": True, "gone": True}}
    found = {"requires_grad": {"b.w": False, "extra": True}, "lr": (1, 2)}
    rows = rows_of(expected, found, NameMap({"a": "b"}))
    assert [(row.tensor, row.detail) for row in rows] == [
        ("lr", "found [1, 2], expected 'nothing'"),
        ("requires_grad.b.w", "found False, expected True"),
    ]


def groups(*words, split=False, swapped=False, left_out="-"):
    """Parameters with such a word in their name have a group without decay, or each one of its own."""

    def make(module):
        named = [(name, value) for name, value in module.named_parameters() if left_out not in name]
        flat = [[value for name, value in named if any(word in name for word in words) is off] for off in (False, True)]
        made = [{"params": part, "weight_decay": 0.1 * (1 - n)} for n, part in enumerate(flat) if part]
        made = [{**group, "params": [one]} for group in made for one in group["params"]] if split else made
        return adamw(made[::-1] if swapped else made)

    return make


GROUPS = {
    "alike": (groups("bias"), {}, ""),
    "split": (groups("bias", split=True), {}, ""),
    "in another order": (groups("bias", swapped=True), {}, ""),
    "one decays": (groups("norm.bias", "down.bias"), {}, "found weight_decay 0.1, expected weight_decay 0.0: up.bias"),
    "by other names": (
        groups("norm.bias", "down.bias"),
        {"names": NameMap({"up": "top"}), "rename": True},
        "found weight_decay 0.1, expected weight_decay 0.0: top.bias",
    ),
    "fused": (
        groups("bias", "down.weight"),
        {"names": NameMap(fused=[Fused("down.weight", ("up.weight", "norm.weight"))])},
        "found weight_decay 0.0, expected weight_decay 0.1: down.weight",
    ),
    "in no group": (
        groups("bias", left_out="up.weight"),
        {},
        "found no group, expected weight_decay 0.1, lr 0.0003",
    ),
    "many": (groups("bias", "weight"), {}, "expected weight_decay 0.1: up.weight, norm.weight, down.weight"),
}


@pytest.mark.parametrize(("make", "options", "words"), GROUPS.values(), ids=GROUPS)
def test_a_parameter_s_group_is_held_to_the_original_s(make, options, words):
    found = setup(make=make)
    if options.pop("rename", False):
        found = {key: renamed(held) if isinstance(held, dict) else held for key, held in found.items()}
    rows = [row for row in rows_of(setup(make=groups("bias")), found, **options) if row.quantity == "configuration"]
    (row,) = (row for row in rows if row.tensor == "groups.parameters")
    assert (row.passed, words in row.detail) == (not words, True)
    assert words or all(row.passed for row in rows)


def renamed(held):
    return {name.replace("up.", "top."): value for name, value in held.items()}


def test_a_row_names_the_first_parameters_of_many():
    found = {"groups": [], "grouped": {f"w{n}": {"lr": 2.0} for n in range(8)}}
    expected = {"groups": [], "grouped": {f"w{n}": {"lr": 1.0} for n in range(8)}}
    (row,) = rows_of(expected, found)[-1:]
    assert (row.measured, row.detail) == (8.0, "found lr 2.0, expected lr 1.0: w0, w1, w2, w3, w4 and 3 more")


def test_an_optimizer_of_copies_says_nothing_of_the_parameters():
    copies = setup(make=lambda ps: adamw([one.detach().clone() for one in ps]))
    assert "grouped" not in copies
    assert all(row.passed for row in rows_of(copies, setup()))


def test_what_a_scheduler_writes_into_a_group_is_no_setting():
    def scheduled(parameters):
        optimizer = adamw(parameters)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
        optimizer.param_groups[0].update(max_lr=1.0, min_lr=0.0, swa_lr=0.5)
        return optimizer

    assert all(row.passed for row in rows_of(setup(), setup(make=scheduled)))
    kept = {**setup(), "groups": [{**setup()["groups"][0], "initial_lr": 1.0}]}  # as older traces have it
    assert all(row.passed for row in rows_of(kept, setup()))


def test_what_a_side_does_not_train_and_leaves_nan_is_to_be_loaded():
    def change(net):
        net.down.weight.requires_grad_(False).fill_(math.nan)

    rows = rows_of(setup(), setup(change))
    assert [row.tensor for row in rows if not row.passed] == ["requires_grad.down.weight"]


class Wrapping:
    """An optimizer of somebody's own around two of torch's."""

    def __init__(self, model):
        halves = list(model.parameters())
        self.model, self.inner = model, {"a": adamw(halves[:1], lr=0.5), "b": [adamw(halves[1:])]}

    def step(self):
        pass


def of_a_model(module):
    return adamw(module.parameters())


def annotated(net: nn.Module):
    return adamw(net.parameters())


@pytest.mark.parametrize(
    ("make", "rates"), [(adamw, [3e-4]), (of_a_model, [3e-4]), (annotated, [3e-4]), (Wrapping, [0.5, 3e-4])]
)
def test_optimizers_are_adapted(make, rates):
    optimizer = optimizer_for(make, net := Net())
    assert [group["lr"] for group in setup_of(net, optimizer)["groups"]] == rates
    assert rate_of(optimizer) == rates[0]
    assert sum(len(group["params"]) for group in groups_of(optimizer)) == len(list(net.parameters()))


def test_what_has_no_parameters_has_no_optimizer():
    assert optimizer_for(adamw, nn.Dropout()) is None
    assert math.isnan(rate_of(None))
    assert rows_of(setup_of(nn.Dropout()), setup_of(nn.Dropout())) == []
