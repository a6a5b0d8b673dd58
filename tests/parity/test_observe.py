"""Calls of modules with any arguments and outputs, called any number of times."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from parity import Side, compare_sides, single_step
from parity.calls import snapshot, tensors_of, watch, with_tensors


@dataclass
class Pair:
    left: Tensor
    right: Tensor | None


def test_tensors_are_found_wherever_they_are() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert list(tensors_of(one)) == [""]
    assert list(tensors_of((one, None, {"a": two}))) == ["0", "2.a"]
    assert list(tensors_of(Pair(one, None))) == ["left"]
    assert list(tensors_of(BaseModelOutput(last_hidden_state=one, hidden_states=(one, two)))) == [
        "last_hidden_state",
        "hidden_states.0",
        "hidden_states.1",
    ]
    assert list(tensors_of(OrderedDict(x=[one]))) == ["x.0"]
    assert tensors_of("text") == {}


def test_a_snapshot_is_not_changed_later() -> None:
    value = {"x": [torch.zeros(2)], "n": {1}}
    kept = snapshot(value)
    value["x"][0].add_(1)  # type: ignore[index]
    value["n"].add(2)  # type: ignore[union-attr]
    assert torch.equal(kept["x"][0], torch.zeros(2))
    assert kept["n"] == {1}


def test_a_snapshot_reaches_the_tensors_inside_an_object() -> None:
    class Cache:
        def __init__(self, value: Tensor, owner: nn.Module) -> None:
            self.layers, self.owner = [{"keys": value}], owner

    value, owner = torch.ones(2, requires_grad=True) * 3, nn.Linear(1, 1)
    kept = snapshot(cache := Cache(value, owner))
    cache.layers[0]["keys"] = torch.zeros(1)
    assert torch.equal(kept.layers[0]["keys"], torch.full((2,), 3.0))
    assert not kept.layers[0]["keys"].requires_grad
    assert kept.owner is owner


def test_other_objects_stay_themselves() -> None:
    marker = object()
    changed = with_tensors((torch.ones(1), {"m": marker}), lambda tensor: tensor + 1)
    assert changed[0] == 2
    assert changed[1]["m"] is marker


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, *, add: Tensor | None = None, **rest: Any) -> tuple[Tensor, None]:
        return (x * self.weight + (0 if add is None else add) + rest.get("more", 0), None)


class Outer(nn.Module):
    """The same part twice, one call of it without a gradient; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Inner()
        self.silent = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            offset = self.silent(x)
        first, _ = self.part(x, add=offset)
        second, _ = self.part(first, more=torch.ones(2))
        return {"first": first, "second": second, "count": torch.tensor(2)}


def test_calls_are_numbered_and_carry_their_own_gradients() -> None:
    module, x = Outer(), torch.ones(1, 2, requires_grad=True)
    with watch(module) as calls:
        out = module(x)
    out["second"].sum().backward()
    assert [call.key for call in calls] == ["silent#0", "part#0", "part#1", "(whole)#0"]
    first, second, whole = calls[1:]
    assert set(first.into) == {"x", "add"}
    assert set(second.into) == {"x", "more"}
    assert set(second.out) == {""}
    assert set(whole.out) == {"first", "second", "count"}
    assert torch.equal(second.into_grad["x"], torch.full((1, 2), 2.0))
    assert torch.equal(first.into_grad["x"], torch.full((1, 2), 4.0))
    assert calls[0].out_grad == {}


def test_readers_of_one_tensor_are_told_apart() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    for own, expected in ((True, (2.0, 3.0)), (False, (5.0, 5.0))):
        fork = Fork()
        fork.a.weight.data.fill_(2.0)
        fork.b.weight.data.fill_(3.0)
        with watch(fork, own_inputs=own) as calls:
            out = fork(torch.ones(1, requires_grad=True) * 1)
        out.backward()
        assert tuple(float(call.into_grad["input"]) for call in calls[:2]) == expected


def test_a_forward_that_raises_leaves_no_hook() -> None:
    module = Outer()
    with pytest.raises(RuntimeError), watch(module):
        module(torch.ones(3))
    assert not module._forward_hooks
    assert not module.part._forward_pre_hooks


def test_what_checkpointing_repeats_is_no_call() -> None:
    class Frugal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.part, x, use_reentrant=False)

    class Plain(Frugal):
        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)

    with watch(module := Frugal()) as calls:
        loss = module(torch.ones(1, 2, requires_grad=True)).sum()
    loss.backward()
    assert [call.key for call in calls] == ["part#0", "(whole)#0"]
    assert calls[0].into_grad["input"].abs().sum() > 0
    compare_sides(Side(Plain), Side(Frugal), [torch.ones(1, 2)]).raise_if_failed()


def second_loss(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)["second"].square().mean()


def built(change: Any = None) -> Any:
    def build() -> nn.Module:
        module = Outer()
        if change is not None:
            change(module)
        return module

    return build


def off_on_second_call(module: Any) -> None:
    calls = []

    def hook(part: nn.Module, args: Any, out: Any) -> Any:
        calls.append(1)
        return (out[0] + 0.5, None) if len(calls) % 2 == 0 else out

    module.part.register_forward_hook(hook)


def silent_off(module: Any) -> None:
    module.silent.register_forward_hook(lambda part, args, out: out + 0.1)


@pytest.mark.parametrize(
    ("change", "module", "number"), [(off_on_second_call, "part", 1), (silent_off, "silent", 0)], ids=["part", "silent"]
)
def test_calls_are_told_apart_when_something_goes_wrong(change: Any, module: str, number: int) -> None:
    batches = [torch.ones(1, 2)]
    sides = Side(built(), second_loss), Side(built(change), second_loss)
    report = compare_sides(*sides, batches, checks=["weights", "forward"])
    assert report.first is not None
    assert (report.first.module, report.first.call) == (module, number)


def test_shared_and_silent_modules_compare() -> None:
    sides = Side(built(), second_loss), Side(built(), second_loss)
    batches = [torch.ones(1, 2)]
    compare_sides(*sides, batches).raise_if_failed()
    single_step(*sides, batches[0]).raise_if_failed()
