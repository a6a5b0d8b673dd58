"""Names go over by the longest prefix, parameters in another layout or number and calls by maps of their own.

Suggested names: by the end of the name and the shape, and a list of what did not match.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parity import (
    Joined,
    NameMap,
    Side,
    Trace,
    compare_sides,
    compare_traces,
    single_step,
    suggest_names,
    trace_side,
    transposed,
)
from parity.calls import WHOLE
from parity.errors import InputError
from parity.names import Copied, align
from tests.parity.example import load


@pytest.mark.parametrize(
    ("prefixes", "name", "port"),
    [
        ({}, "a.weight", "a.weight"),
        ({"a": "b"}, "a.weight", "b.weight"),
        ({"a": "b"}, "ab.weight", "ab.weight"),
        ({"a": "b", "a.q": "c.wq"}, "a.q.weight", "c.wq.weight"),
        ({"a": "b", "a.q": "c.wq"}, "a.k.weight", "b.k.weight"),
        ({"a": None}, "a.weight", None),
        ({"a": None, "a.q": "q"}, "a.q", "q"),
        ({"": "model"}, "a.weight", "model.a.weight"),
        ({"": "model"}, WHOLE, "model"),
        ({"model": ""}, "model.a", "a"),
        ({"model": ""}, "model", WHOLE),
        ({"model": ""}, WHOLE, None),
        ({}, WHOLE, WHOLE),
        ({"": None}, WHOLE, None),
        ({"": None}, "a.weight", "a.weight"),
        ({"": None, "a": "b"}, "a.weight", "b.weight"),
        ({"": None, "a": None}, "a.weight", None),
        ({WHOLE: None}, WHOLE, None),
        ({WHOLE: None}, "a", "a"),
        ({WHOLE: "model"}, WHOLE, "model"),
        ({WHOLE: "model"}, "a", "a"),
        ({"model": WHOLE}, "model", WHOLE),
        ({"model": WHOLE}, "model.a", "a"),
        ({"model": WHOLE}, WHOLE, None),
    ],
)
def test_a_name_goes_over(prefixes: dict[str, str | None], name: str, port: str | None) -> None:
    assert NameMap(prefixes).to_port(name) == port


def test_one_name_for_two_is_refused() -> None:
    with pytest.raises(InputError, match="name map: c: found several"):
        NameMap({"a": "c", "b": "c"})


def test_a_name_that_another_takes_by_being_the_same_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    with pytest.raises(InputError, match=r"name map: b.*: found a.* and b.* of the original"):
        compare_sides(Side(Two), Side(Two), [torch.ones(1, 2)], names={"a": "b"})
    with pytest.raises(InputError, match="name map: b: found a and b of the original"):
        compare_traces(
            *[trace_side(Side(Two), [torch.ones(1, 2)])] * 2, names={"a": "b", "b.weight": None, "b.bias": None}
        )
    swapped = compare_sides(Side(Two), Side(Two), [torch.ones(1, 2)], names={"a": "b", "b": "a"})
    assert swapped.failed[0] == "forward"


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q(x) * self.k(x))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(4, 12)
        self.project = nn.Parameter(torch.zeros(6, 4))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.qk(x).chunk(2, dim=-1)
        return (q * k * self.scale) @ self.project


NAMES = NameMap(
    {"q": None, "k": None},
    joined=[
        Joined("qk.weight", ("q.weight", "k.weight")),
        Joined("qk.bias", ("q.bias", "k.bias")),
        transposed("out.weight", "project"),
    ],
    only_port=["scale"],
)
BATCHES = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]


def test_fused_and_transposed_parameters_are_compared() -> None:
    report = compare_sides(Side(Split), Side(Fused), BATCHES, names=NAMES)
    report.raise_if_failed()
    gradients = {row.tensor for row in report.rows if row.check == "gradients"}
    assert gradients == {"mb0.grad.qk.weight", "mb0.grad.qk.bias", "mb0.grad.project", "mb0.grad_norm"}


def test_the_other_order_is_seen() -> None:
    swapped = NameMap(
        NAMES.prefixes,
        [*NAMES.joined.values(), Joined("qk.weight", ("k.weight", "q.weight"))],
        NAMES.only_port,
    )
    assert compare_sides(Side(Split), Side(Fused), BATCHES, names=swapped).failed[0] == "forward"


def test_split_parameters_go_the_other_way() -> None:
    names = NameMap(
        {"qk": None},
        joined=[
            Joined("q.weight", ("qk.weight",), lambda tensors: tensors[0][:6]),
            Joined("k.weight", ("qk.weight",), lambda tensors: tensors[0][6:]),
            Joined("q.bias", ("qk.bias",), lambda tensors: tensors[0][:6]),
            Joined("k.bias", ("qk.bias",), lambda tensors: tensors[0][6:]),
            transposed("project", "out.weight"),
        ],
    )
    fused = Side(lambda: filled(Fused()))
    assert compare_sides(
        fused, Side(Split), BATCHES, names=NameMap({**names.prefixes, "scale": None}, names.joined.values())
    ).passed


def filled(module: Fused) -> nn.Module:
    nn.init.normal_(module.project)
    return module


@pytest.mark.parametrize(
    ("names", "tensor", "detail"),
    [
        (NameMap({"q": None, "k": None}, NAMES.joined.values()), "init.scale", "unexpected"),
        (NameMap({}, list(NAMES.joined.values())[1:], ["scale"]), "init.q.weight", "missing"),
    ],
)
def test_a_parameter_without_a_counterpart_must_be_named(names: NameMap, tensor: str, detail: str) -> None:
    report = compare_sides(Side(Split), Side(Fused), BATCHES, names=names)
    assert report.failed[0] == "weights"
    row = next(row for row in report.rows if row.tensor == tensor)
    assert not row.passed
    assert detail in row.detail


def test_a_joined_leaves_its_source_to_the_plain_map() -> None:
    """The port has the original's head, and a second one made of it."""

    class Frozen(Split):
        def __init__(self) -> None:
            super().__init__()
            self.out.requires_grad_(False)

    class Two(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.turned = nn.Parameter(torch.zeros(6, 4), requires_grad=False)

    names = NameMap(joined=[transposed("out.weight", "turned")])
    report = compare_sides(Side(Frozen), Side(Two), BATCHES, names=names)
    report.raise_if_failed()
    assert {"init.out.weight", "init.turned"} <= {row.tensor for row in report.rows if row.check == "weights"}
    assert names.targets("out.weight", port={"turned"}) == []


class Tied(nn.Module):
    """One matrix at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(self.table(x).tanh())


class Apart(nn.Module):
    """A matrix for each end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh())


class Biased(Apart):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh()) + 0.1


class Cut(Apart):
    """The second one is never called, and nothing reaches its part of the gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.first(x).tanh(), self.second.weight.detach())


TWICE = NameMap(
    {"table": "first"},
    copied=[Copied("table", ("first", "second"))],
    calls={"table#0": "first#0", "table#1": "second#0"},
)
BOTH_WAYS = NameMap({"first": "table", "second": None}, calls={"first#0": "table#0", "second#0": "table#1"})
EARLY = ["weights", "forward", "loss", "gradients"]


def equal_halves(module: Any) -> nn.Module:
    module.second.weight = module.first.weight
    return module


@pytest.mark.parametrize(
    ("original", "port", "names", "failed"),
    [
        (Tied, Apart, TWICE, []),
        (Tied, Biased, TWICE, ["forward"]),
        (Tied, Cut, TWICE, ["forward"]),
        (lambda: equal_halves(Apart()), Tied, BOTH_WAYS, []),
        (lambda: equal_halves(Biased()), Tied, BOTH_WAYS, ["forward"]),
    ],
    ids=["copied", "copied, biased", "copied, cut", "tied", "tied, biased"],
)
def test_one_module_called_twice_against_two(original: Any, port: Any, names: NameMap, failed: list[str]) -> None:
    report = compare_sides(Side(original), Side(port), BATCHES, names=names, checks=EARLY)
    rows = {(row.check, row.tensor) for row in report.rows if not row.passed and row.tensor != "mb0.grad_norm"}
    assert [check for check in EARLY if check in {check for check, _ in rows} and check in report.failed] == failed
    forward = {row.tensor for row in report.rows if row.check == "forward"}
    assert forward >= (
        {"table#0", "table#1"} if port is Tied else {"first#0"} if port is Cut else {"first#0", "second#0"}
    )


def test_a_single_step_follows_the_call_map() -> None:
    single_step(Side(Tied), Side(Apart), BATCHES[0], names=TWICE).raise_if_failed()
    report = single_step(Side(Tied), Side(Biased), BATCHES[0], names=TWICE)
    assert {row.run for row in report.rows} == {"first", "second", "(whole)"}
    assert report.first is not None
    assert report.first.module == WHOLE


def test_calls_inside_of_a_mapped_one_go_along() -> None:
    keys = ["block.norm#0", "block.norm#1", "block#0", "other#0", "block.norm#2", "block.norm#3", "block#1", "block#2"]
    names = NameMap({"other": "rest"}, calls={"block#0": "late#1", "block#1": "late#0"})
    assert names.call_keys(keys) == {
        "other#0": "rest#0",
        "block#0": "late#1",
        "block#1": "late#0",
        "block#2": "block#2",
        "block.norm#2": "late.norm#0",
        "block.norm#3": "late.norm#1",
        "block.norm#0": "late.norm#2",
        "block.norm#1": "late.norm#3",
    }


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_calls_without_a_map_keep_their_numbers(modules: list[str]) -> None:
    keys = [f"{name}#{modules[:i].count(name)}" for i, name in enumerate(modules)]
    assert NameMap({"a": "x.y"}).call_keys(keys) == {key: key.replace("a#", "x.y#") for key in keys}


@pytest.mark.parametrize("calls", [{"#0": "a#0"}, {"a#x": "a#0"}, {"a": "b#-1"}])
def test_a_call_map_of_another_form_is_refused(calls: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"name map: calls: found .*, expected module#number"):
        NameMap(calls=calls)


def test_arguments_are_renamed() -> None:
    x = torch.ones(1)
    original = Trace(
        "a", "case", "float32", {f"mb0.call.{name}": x for name in ("m#0.into.x.0", "m#0.out.x", "n#0.into.x")}
    )
    original.calls = ("m#0", "n#0")
    names = NameMap({"m": "p"}, arguments={"x": "states", "m.x": "hidden"})
    expected, _ = align(original, Trace("b", "case", "float32"), names)
    assert list(expected.tensors) == ["mb0.call.p#0.into.hidden.0", "mb0.call.p#0.out.x", "mb0.call.n#0.into.states"]


def tree(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def test_equal_names_need_no_map() -> None:
    suggestion = suggest_names(tree(a=nn.Linear(3, 4)), tree(a=nn.Linear(3, 4)))
    assert suggestion.complete
    assert suggestion.names.prefixes == {}


def test_the_end_of_a_name_and_the_shape_decide() -> None:
    original = tree(self_attn=tree(q=nn.Linear(4, 4), k=nn.Linear(4, 4)), mlp=tree(up=nn.Linear(4, 8)))
    port = tree(attention=tree(k=nn.Linear(4, 4), q=nn.Linear(4, 4)), ffn=tree(up=nn.Linear(4, 8)))
    names = suggest_names(original, port).names
    assert names.to_port("self_attn") == "attention"
    assert names.to_port("self_attn.q.weight") == "attention.q.weight"
    assert names.to_port("self_attn.k.bias") == "attention.k.bias"
    assert names.to_port("mlp.up") == "ffn.up"


def test_what_fits_two_places_stays_unmatched_with_its_candidates() -> None:
    original = tree(first=nn.Linear(4, 4, bias=False), second=nn.Linear(4, 4, bias=False))
    port = tree(one=nn.Linear(4, 4, bias=False), two=nn.Linear(4, 4, bias=False))
    suggestion = suggest_names(original, port)
    assert suggestion.unmatched_original == {
        "first.weight": ("one.weight", "two.weight"),
        "second.weight": ("one.weight", "two.weight"),
    }
    assert set(suggestion.unmatched_port) == {"one.weight", "two.weight"}
    assert suggestion.names.prefixes == {}


def test_another_shape_and_another_layer_do_not_match() -> None:
    original = tree(layers=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), head=nn.Linear(4, 9))
    port = tree(h=nn.ModuleList([nn.Linear(4, 4)]), out=nn.Linear(4, 8))
    suggestion = suggest_names(original, port)
    assert suggestion.names.to_port("layers.0.weight") == "h.0.weight"
    assert suggestion.unmatched_original["layers.1.weight"] == ()
    assert suggestion.unmatched_original["head.weight"] == ()
    assert suggestion.unmatched_port["out.weight"] == ()


def test_the_example_s_layer_is_matched_as_far_as_shapes_allow() -> None:
    example = load()
    suggestion = suggest_names(example.ORIGINAL, example.PORT.build())  # sides or modules
    assert suggestion.names.to_port("mlp.down_proj.weight") == "feed_forward.w2.weight"
    assert suggestion.unmatched_original["self_attn.k_proj.weight"] == ("attention.wk.weight", "attention.wv.weight")
    wrong = [n for n, port in suggestion.names.prefixes.items() if port != load().NAMES.get(n, port)]
    assert wrong == []
    assert (
        "not matched, original: self_attn.k_proj.weight; same shape: attention.wk.weight, attention.wv.weight"
        in str(suggestion)
    )


def test_order_does_not_matter() -> None:
    torch.manual_seed(0)
    parts = {name: nn.Linear(4, 4) for name in "abc"}
    port = {f"{name}": nn.Linear(4, 4) for name in "cab"}
    names = suggest_names(tree(x=tree(**parts)), tree(y=tree(**port))).names
    assert [names.to_port(f"x.{name}") for name in "abc"] == ["y.a", "y.b", "y.c"]
