"""Names go over by the longest prefix, parameters in another layout or number and calls by maps of their own.

Suggested names: by the end of the name and the shape, and a list of what did not match.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parity import (
    Fused,
    NameMap,
    Side,
    Trace,
    compare_sides,
    compare_traces,
    suggest_names,
    trace_side,
    transposed,
)
from parity.calls import WHOLE
from parity.errors import InputError
from parity.names import Replicated, align
from parity.verdict import Status
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
def test_a_name_goes_over(prefixes, name, port):
    assert NameMap(prefixes).to_port(name) == port


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x))


BATCHES = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]


def compared(names):
    compare_sides(Side(Two), Side(Two), BATCHES, names=names)


def traced(names):
    compare_traces(*[trace_side(Side(Two), BATCHES)] * 2, names=names)


@pytest.mark.parametrize(
    ("use", "given", "message"),
    [
        (NameMap, {"a": "c", "b": "c"}, "c: found several"),
        (compared, {"a": "b"}, "b.*: found a.* and b.* of the original"),
        (traced, {"a": "b", "b.weight": None, "b.bias": None}, "b: found a and b of the original"),
        *(
            (lambda calls: NameMap(calls=calls), {key: "a#0"}, "calls: found .*, expected module#n")
            for key in ("#0", "a#x")
        ),
        (lambda calls: NameMap(calls=calls), {"a": "b#-1"}, "calls: found b#-1, expected module#number"),
    ],
)
def test_one_name_for_two_and_other_forms_are_refused(use, given, message):
    with pytest.raises(InputError, match=f"name map: {message}"):
        use(given)


def test_two_names_for_one_are_one_value_or_refused():
    names, values = NameMap({"a": "x"}), torch.ones(2)
    assert names.rename({"a": values, "x": values.clone()})["x"] is values
    assert names.rename({"a": [1.0]}) == {"x": [1.0]}
    with pytest.raises(InputError, match="name map: x: found a and x of the original"):
        names.rename({"a": values, "x": 2 * values})


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.out(self.q(x) * self.k(x))


class FusedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.qk, self.project = nn.Linear(4, 12), nn.Parameter(torch.randn(6, 4))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        q, k = self.qk(x).chunk(2, dim=-1)
        return (q * k * self.scale) @ self.project


class Frozen(Split):
    def __init__(self):
        super().__init__()
        self.out.requires_grad_(False)


class Second(Frozen):
    """The original's head, and a second one made of it."""

    def __init__(self):
        super().__init__()
        self.turned = nn.Parameter(torch.zeros(6, 4), requires_grad=False)


JOINED = [
    Fused("qk.weight", ("q.weight", "k.weight")),
    Fused("qk.bias", ("q.bias", "k.bias")),
    transposed("out.weight", "project"),
]
PARTED = [
    *(Fused(f"q.{name}", (f"qk.{name}",), lambda tensors: tensors[0][:6]) for name in ("weight", "bias")),
    *(Fused(f"k.{name}", (f"qk.{name}",), lambda tensors: tensors[0][6:]) for name in ("weight", "bias")),
    transposed("project", "out.weight"),
]
NEITHER = {"q": None, "k": None}
CROSSED = [*JOINED, Fused("qk.weight", ("k.weight", "q.weight"))]
TURNED = NameMap(fused=[transposed("out.weight", "turned")])


class Tied(nn.Module):
    """One matrix at both ends."""

    def __init__(self):
        super().__init__()
        self.table = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.table(self.table(x).tanh())


class Apart(nn.Module):
    """A matrix for each end."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.bias = bias
        self.first, self.second = (nn.Linear(4, 4, bias=False) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x).tanh()) + self.bias


class Cut(Apart):
    """The second one is never called, and nothing reaches its part of the gradient."""

    def forward(self, x):
        return nn.functional.linear(self.first(x).tanh(), self.second.weight.detach())


TWICE = NameMap(
    {"table": "first"},
    replicated=[Replicated("table", ("first", "second"))],
    calls={"table#0": "first#0", "table#1": "second#0"},
)
BOTH_WAYS = NameMap({"first": "table", "second": None}, calls={"first#0": "table#0", "second#0": "table#1"})


def equal_halves(bias=0.0):
    module = Apart(bias)
    module.second.weight = module.first.weight
    return module


# original, port, map, the first check that fails, rows: tensors with words of their details
PAIRS = {
    "swapped": (Two, Two, {"a": "b", "b": "a"}, "forward", {}),
    "fused": (Split, FusedNet, NameMap(NEITHER, JOINED, ["scale"]), "", {f"mb0.grad.{j.port}": "" for j in JOINED}),
    "fused in another order": (Split, FusedNet, NameMap(NEITHER, CROSSED, ["scale"]), "forward", {}),
    "parted": (FusedNet, Split, NameMap({"qk": None, "scale": None}, PARTED), "", {}),
    "unexpected": (Split, FusedNet, NameMap(NEITHER, JOINED), "weights", {"init.scale": "unexpected"}),
    "missing": (Split, FusedNet, NameMap({}, JOINED[1:], ["scale"]), "weights", {"init.q.weight": "missing"}),
    "source has a name of its own": (Frozen, Second, TURNED, "", {"init.out.weight": "", "init.turned": ""}),
    "copied": (Tied, Apart, TWICE, "", {"first#0": "", "second#0": ""}),
    "copied, biased": (Tied, lambda: Apart(0.1), TWICE, "forward", {"first#0": "", "second#0": ""}),
    "copied, cut": (Tied, Cut, TWICE, "forward", {"first#0": ""}),
    "tied": (equal_halves, Tied, BOTH_WAYS, "", {"table#0": "", "table#1": ""}),
    "tied, biased": (lambda: equal_halves(0.1), Tied, BOTH_WAYS, "forward", {"table#0": "", "table#1": ""}),
}
EARLY = ["weights", "forward", "loss", "gradients", "optimizer_step"]


@pytest.mark.parametrize(("original", "port", "names", "failed", "details"), PAIRS.values(), ids=PAIRS)
def test_what_goes_over_by_a_map_is_compared(original, port, names, failed, details):
    checks = EARLY[:4] if port in (Tied, Apart, Cut) else EARLY  # their halves step apart
    report = compare_sides(Side(original), Side(port), BATCHES, names=names, checks=checks)
    seen = {row.tensor: row.detail for row in report.rows}
    own = [row.check for row in report.rows if row.status is Status.FAILED and row.tensor != "mb0.grad_norm"]
    assert next(iter(own), "") == failed
    assert all(words in seen[tensor] for tensor, words in details.items())


def test_calls_inside_of_a_mapped_one_go_along():
    keys = ["block.norm#0", "block.norm#1", "block#0", "other#0", "block.norm#2", "block.norm#3", "block#1", "block#2"]
    names = NameMap({"other": "rest"}, calls={"block#0": "late#1", "block#1": "late#0"})
    inner = ["late.norm#2", "late.norm#3", "late#1", "rest#0", "late.norm#0", "late.norm#1", "late#0", "block#2"]
    assert names.call_keys(keys) == dict(zip(keys, inner))


def test_calls_go_along_with_the_innermost_mapped_one():
    keys = ["block.norm#0", "block.part.norm#0", "block.part#0", "block#0"]
    names = NameMap(calls={"block#0": "late#0", "block.part#0": "piece#0"})
    assert names.call_keys(keys) == dict(zip(keys, ["late.norm#0", "piece.norm#0", "piece#0", "late#0"]))


def test_what_rounding_does_is_renamed_as_what_it_does_it_to():
    names, original = NameMap({"a": "b", "q": None}), Trace("a", "case", "float32", calls=("a#0", "q#0"))
    spread = {f"{group}.{name}.weight": (1.0,) for group in ("grad", "after", "final") for name in "aq"}
    moved = names.spread({**spread, "call.a#0.out": (2.0,), "call.q#0.out": (2.0,)}, original)
    assert set(moved) == {"grad.b.weight", "after.b.weight", "final.b.weight", "call.b#0.out"}


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_calls_without_a_map_keep_their_numbers(modules):
    keys = [f"{name}#{modules[:i].count(name)}" for i, name in enumerate(modules)]
    assert NameMap({"a": "x.y"}).call_keys(keys) == {key: key.replace("a#", "x.y#") for key in keys}


def test_arguments_are_renamed():
    x, keys = torch.ones(1), ("m#0.into.x.0", "m#0.out.x", "n#0.into.x")
    original = Trace("a", "case", "float32", {f"mb0.call.{name}": x for name in keys}, calls=("m#0", "n#0"))
    names = NameMap({"m": "p"}, arguments={"x": "states", "m.x": "hidden"})
    expected, _ = align(original, Trace("b", "case", "float32"), names)
    assert list(expected.tensors) == ["mb0.call.p#0.into.hidden.0", "mb0.call.p#0.out.x", "mb0.call.n#0.into.states"]


def tree(**parts):
    """Modules by name; a number or a pair is a linear layer without a bias."""
    module = nn.Module()
    for name, part in parts.items():
        sizes = part if isinstance(part, tuple) else (4, part)
        module.add_module(name, part if isinstance(part, nn.Module) else nn.Linear(*sizes, bias=False))
    return module


def layers(*widths):
    return tree(**{str(number): width for number, width in enumerate(widths)})


# original, port, what goes over, candidates of what does not
SUGGESTED = {
    "equal names": (tree(a=5), tree(a=5), {"a.weight": "a.weight"}, {}),
    "end and shape": (
        tree(self_attn=tree(q=4, k=4), mlp=tree(up=8)),
        tree(attention=tree(k=4, q=4), ffn=tree(up=8)),
        {"self_attn": "attention", "self_attn.q.weight": "attention.q.weight", "mlp.up": "ffn.up"},
        {},
    ),
    "two places": (
        tree(first=4, second=4),
        tree(one=4, two=4),
        {},
        dict.fromkeys(("first.weight", "second.weight"), ("one.weight", "two.weight")),
    ),
    "another shape or layer": (
        tree(layers=layers(4, 4), head=9),
        tree(h=layers(4), out=8),
        {"layers.0.weight": "h.0.weight"},
        {"layers.1.weight": (), "head.weight": ()},
    ),
}


@pytest.mark.parametrize(("original", "port", "names", "unmatched"), SUGGESTED.values(), ids=SUGGESTED)
def test_names_are_suggested_by_their_ends_and_shapes(original, port, names, unmatched):
    suggestion = suggest_names(original, port)
    assert {name: suggestion.names.to_port(name) for name in names} == names
    assert suggestion.unmatched_original == unmatched
    assert bool(suggestion.names.prefixes) == (set(names) != set(names.values()) and bool(names))


class Turned(nn.Linear):
    """Stores its matrix the other way round, as GPT-2's Conv1D does."""

    def __init__(self, into, out):
        super().__init__(out, into, bias=False)

    def forward(self, x):
        return x @ self.weight


def test_what_both_sides_call_alike_is_matched_with_itself_alone_and_what_is_turned_is_said():
    mine = tree(c_fc=(4, 8), c_proj=(8, 4), square=4, same=4, odd=(4, 8))
    theirs = tree(c_fc=Turned(4, 8), c_proj=Turned(8, 4), square=Turned(4, 4), same=4, odd=(6, 8), other=(4, 8))
    found = suggest_names(mine, theirs)
    assert {*found.names.fused} == {"c_fc.weight", "c_proj.weight", "square.weight"}
    assert {*found.unmatched_original, *found.unmatched_port} == {"odd.weight", "other.weight"}
    weights = found.names.parameters({name: one.detach() for name, one in mine.named_parameters()})
    assert torch.equal(weights["square.weight"], mine.square.weight.T)
    assert "transposed('square.weight', 'square.weight')" in str(found)


def test_what_is_suggested_is_said_once():
    """A wrapper around the whole is one entry, and so is a renamed module with all that keeps its names inside.

    One with a head beside what it wraps is none: what it wraps is a part of the port's whole.
    """
    inner = {"fc": 3, "layers": layers(4, 4)}
    assert suggest_names(tree(draft=tree(**inner)), tree(**inner)).names.prefixes == {"draft": ""}
    beside = suggest_names(tree(draft=tree(**inner), head=9), tree(**inner, head=9)).names.prefixes
    assert beside == {"draft.fc": "fc", "draft.layers": "layers"}
    found = suggest_names(tree(a=tree(q=4, k=5, v=6)), tree(b=tree(q=4, k=5, w=6))).names.prefixes
    assert found == {"a": "b", "a.v": "b.w"}


def test_the_example_s_layer_is_matched_as_far_as_shapes_allow():
    example = load()
    suggestion = suggest_names(example.ORIGINAL, example.PORT.build())  # sides or modules
    assert suggestion.names.to_port("mlp.down_proj.weight") == "feed_forward.w2.weight"
    assert [n for n, port in suggestion.names.prefixes.items() if port != example.NAMES.get(n, port)] == []
    words = "not matched, original: self_attn.k_proj.weight; same shape: attention.wk.weight, attention.wv.weight"
    assert words in str(suggestion)


def test_a_call_that_the_port_does_not_make_is_left_out():
    names = NameMap({"table": "words"}, calls={"table#1": None})
    assert names.call_keys(["table#0", "table#1"]) == {"table#0": "words#0"}
