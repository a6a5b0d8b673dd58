"""Planted faults are found where they are: in which module, by which input, at which operator and line.

Two pairs: a layer that the project has never seen, and a small model whose ids, positions and masks are made outside of
any module.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from parity import NameMap, compare_sides
from parity.calls import WHOLE, Call, gradients_of, watch
from parity.compare import RowKey
from parity.locate import (
    LOSS,
    Comparator,
    compare_inputs,
    first_backward,
    first_forward,
    one_form,
    paired_inputs,
)
from parity.operators import Live, first_apart, follow, with_operator
from parity.tolerances import Kind, Tolerance
from parity.verdict import Finding
from tests.parity.example import load, side_with


def hooked(place, change):
    """What a module gives out, changed."""
    return lambda block: block.get_submodule(place).register_forward_hook(lambda module, args, out: change(out))


def unit_by(change):
    """The feed-forward's own formula, changed."""

    def plant(block):
        unit = block.feed_forward
        unit.forward = lambda x: change(unit, x)

    return plant


def residuals_by(first, second):
    """What the block adds to its two halves."""

    def plant(block):
        def forward(hidden_states, **_):
            x = first(hidden_states) + block.attention(block.attention_norm(hidden_states))
            return second(x) + block.feed_forward(block.ffn_norm(x))

        block.forward = forward

    return plant


def attention_by(**changes):
    """Attributes of the attention, changed; a function is given it first."""

    def plant(block):
        for name, new in changes.items():
            setattr(block.attention, name, partial(new, block.attention) if callable(new) else new)

    return plant


def frozen_value(block):
    block.attention.wv.weight.requires_grad_(False)


def halved_gradient(block):
    block.attention.wo.register_full_backward_hook(lambda module, into, out: (into[0] * 0.5,))


def whole(x):
    return x


F = nn.functional
FAULTS = {
    "bias in the query": (hooked("attention.wq", lambda out: out + 0.01), "forward", "attention.wq"),
    "another rope theta": (attention_by(theta=500000.0), "forward", "attention"),
    "gate and up swapped": (unit_by(lambda u, x: u.w2(u.w1(x) * F.silu(u.w3(x)))), "forward", "feed_forward"),
    "residual left out": (residuals_by(lambda x: 0, whole), "forward", "(whole)"),
    "key heads in turn": (attention_by(share=lambda a, x: x.repeat(1, a.groups, 1, 1)), "forward", "attention"),
    "input detached": (unit_by(lambda u, x: type(u).forward(u, x.detach())), "backward", "feed_forward"),
    "residual detached": (residuals_by(whole, Tensor.detach), "backward", "(whole)"),
    "a weight frozen": (frozen_value, "backward", "attention.wv"),
    "a gradient halved on its way": (halved_gradient, "backward", "attention.wo"),
}
CHECKS = {"forward": "forward", "backward": "gradients", "configuration": "configuration"}


def test_without_a_fault_nothing_is_found():
    example = load()
    report = example.compare()
    assert report.passed, str(report)
    assert report.first is None


@pytest.mark.parametrize(("plant", "direction", "module"), FAULTS.values(), ids=FAULTS)
def test_direction_and_module_are_named(plant, direction, module):
    example, port = load(), side_with(plant)
    report = compare_sides(
        example.ORIGINAL, port, example.batches(), names=example.NAMES, checks=[*CHECKS.values()], steps=1
    )
    first = "configuration" if plant is frozen_value else direction  # what is not trained is said before any step
    assert (report.first.direction, report.first.module) == (first, module), str(report.first)
    assert "; ;" not in f"{report.first};"
    assert report.failed[0] == CHECKS[first]
    if first == direction:
        assert " at " in report.first.operator
        assert ("(backward)" in report.first.operator) == (direction == "backward")


# a model of functions: what goes wrong between modules is found at its line

WIDTH, LENGTH = 8, 7


class Block(nn.Module):
    """Attention over positions that are added to the states; a mask says who is seen."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x, positions, mask):
        q, k = turned(self.q(x), positions), turned(self.k(x), positions)
        return x + self.o(attend(q, k, self.v(x), mask))


def turned(x, positions):
    return x * torch.cos(positions[..., None] * 0.3)


def attend(q, k, v, mask):
    if isinstance(mask, BlockMask):  # which has no backward on a CPU
        return flex_attention(*(one.detach()[:, None] for one in (q, k, v)), block_mask=mask)[:, 0]
    return (q @ k.mT / WIDTH**0.5).masked_fill(~mask, float("-inf")).softmax(-1) @ v


def causal(length, ahead=0):
    return torch.ones(length, length, dtype=torch.bool).tril(ahead)


def blocked(length, ahead):
    return create_block_mask(lambda b, h, q, k: k <= q + ahead, 1, 1, length, length, device="cpu", BLOCK_SIZE=4)


class Model(nn.Module):
    """What it computes outside of any module may be changed."""

    def __init__(self, **changes):
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(40, WIDTH), Block(), nn.RMSNorm(WIDTH, eps=1e-5)
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.does = {**FUNCTIONS, **changes}

    def forward(self, ids, position_ids=None):
        positions = self.does["places"](ids) if position_ids is None else position_ids
        x = self.block(self.embed(self.does["shifted"](ids)), positions, self.does["mask"](ids))
        return self.head(self.does["mixed"](self.norm(x)))


FUNCTIONS = {
    "places": lambda ids: torch.arange(ids.shape[-1]),
    "shifted": lambda ids: ids.roll(1, -1),
    "mask": lambda ids: causal(ids.shape[-1]),
    "mixed": lambda x: x + 0.5 * x.tanh(),
}


def in_another_way(x, factor):
    """The hyperbolic tangent by exponentials."""
    scaled = 2 * x
    return scaled / 2 + (scaled.exp() - 1) / (scaled.exp() + 1) * factor


class SwappedArguments(Model):
    def __init__(self):
        super().__init__()
        forward = self.block.forward
        self.block.forward = lambda x, at, mask: forward(x, at, mask.mT | mask.diagonal().diag())


class OtherEps(Model):
    def __init__(self):
        super().__init__()
        self.norm.eps = 1e-2


def line(words):
    """Where something stands in this file."""
    with open(__file__) as text:
        numbers = [n for n, one in enumerate(text, 1) if words in one and "line(" not in one]
    return f"test_locate.py:{numbers[0]}"


IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 38]])


def by(**changes):
    return lambda: Model(**changes)


# the port, the module that is blamed, what is said of inputs, what stands in the operator's words
BLAMED = {
    "positions": (
        by(places=lambda ids: torch.arange(1, ids.shape[-1] + 1)),
        *(WHOLE, "block#0: its input `positions` already differs, at (0,): expected 0, found 1, made outside"),
        "aten.arange at {torch.arange(1, ids} / aten.arange at {torch.arange(ids.shape[-1])}",
    ),
    "mask": (
        by(mask=lambda ids: causal(ids.shape[-1], ahead=1)),
        *(WHOLE, "block#0: its input `mask` already differs, at (0, 1): expected False, found True, made outside"),
        "aten.tril at {.tril(ahead)} / aten.tril at {.tril(ahead)}",
    ),
    "block mask": (
        by(mask=lambda ids: blocked(ids.shape[-1], ahead=1)),
        *(WHOLE, "block#0: its input `mask` already differs, at (0, 1): expected False, found True, made outside"),
        "aten.add at {k <= q + ahead} / aten.ones at {torch.ones(length, length, dtype=torch.bool).tril}",
    ),
    "ids": (
        by(shifted=lambda ids: ids.roll(2, -1)),
        *(WHOLE, "embed#0: its input `input` already differs, at (0, 0): expected 35, found 5, made outside"),
        "aten.roll at {ids.roll(2, -1)} / aten.roll at {ids.roll(1, -1)}",
    ),
    "operator": (
        by(mixed=lambda x: x + 0.5 * x.sigmoid()),
        *(WHOLE, "head#0: its input `input` already differs"),
        "aten.sigmoid at {x + 0.5 * x.sigmoid()} / aten.tanh at {x + 0.5 * x.tanh()}",
    ),
    "left out": (
        by(mixed=lambda x: 0.5 * x.tanh()),
        *(WHOLE, "head#0: its input", " / aten.add at {x + 0.5 * x.tanh()}"),
    ),
    "swapped": (SwappedArguments, "block", "o#0: its input", "{mask.mT | mask.diag}"),
    "eps": (OtherEps, "norm", "at (", ' / aten.rsqrt at {return self.head(self.does["mixed"](self.norm}'),
    "another way": (by(mixed=lambda x: in_another_way(x, 0.6)), WHOLE, "head#0: its input", "{scaled.exp() - 1}"),
    "detached": (
        by(mixed=lambda x: x + 0.5 * x.detach().tanh()),
        *(WHOLE, "gradient of ", " / aten.mul (backward) at {x + 0.5 * x.tanh()}"),
    ),
}


def lives(port):
    torch.manual_seed(0)
    mine, theirs = Model(), port()
    theirs.load_state_dict(mine.state_dict())
    return tuple(Live(one, lambda one=one: one(IDS).square().mean()) for one in (mine, theirs))


def found(port):
    """Forward, then backward."""
    calls, grads = [], []
    for live in lives(port):
        with watch(live.module) as seen:
            loss = live.run()
        loss.backward()
        calls.append(seen)
        grads.append(gradients_of(dict(live.module.named_parameters())))
    apart = Comparator(1e-5)
    return first_forward(*calls, apart) or first_backward(*calls, tuple(grads), apart)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("port", "module", "detail", "operator"), BLAMED.values(), ids=BLAMED)
def test_module_input_and_operator_are_named(port, module, detail, operator):
    finding = found(port)
    direction = "backward" if "gradient" in detail else "forward"
    assert (finding.direction, finding.module) == (direction, module), str(finding)
    assert detail in finding.detail
    whole = with_operator(finding, *lives(port), Comparator(1e-5))
    for words in operator.replace("}", "{").split("{")[1::2]:
        operator = operator.replace(f"{{{words}}}", line(words))
    assert operator in whole.operator
    assert f"; first operator: {whole.operator}" in str(whole)


def test_the_same_in_another_way_is_no_fault():
    port = by(mixed=lambda x: in_another_way(x, 0.5))
    assert found(port) is None
    logs = [follow(live, WHOLE, 0) for live in lives(port)]
    assert not Comparator(1e-5)(*(log.last[0].tensor for log in logs))


def test_values_are_known_in_another_layout():
    """The other axis first; the fault is the last factor."""
    x, modules = torch.randn(3, 5), (nn.Identity(), nn.Identity())
    modules[0].forward = lambda x: (x * 2).tanh() * 3
    modules[1].forward = lambda x: ((x.mT * 2).tanh() * 4).mT
    logs = [follow(Live(module, partial(module, x)), WHOLE, 0) for module in modules]
    assert first_apart(*logs, Comparator(1e-5)).startswith(f"aten.mul at {line('tanh() * 4).mT')} /")


def test_an_input_of_the_model_s_own_is_said_to_be_one():
    mine, _ = lives(Model)
    calls = []
    for positions in (torch.arange(LENGTH), torch.arange(LENGTH) + torch.eye(LENGTH, dtype=torch.long)[4]):
        with watch(mine.module) as seen:
            mine.module(IDS, position_ids=positions)
        calls.append(seen)
    finding = first_forward(*calls, Comparator(1e-5))
    assert finding.module == WHOLE
    assert (
        finding.detail
        == "its input `position_ids` already differs, at (4,): expected 4, found 5, which is the model's own"
    )


def test_another_module_s_output_is_said_to_be_one():
    """The maker agrees in what the bound allows, the reader's input must be equal."""

    def chain(made, read):
        ids = torch.tensor(read)
        return [
            Call("maker", 0, {"x": torch.ones(3)}, {"": torch.tensor(made)}),
            Call("reader", 0, {"i": ids}, {"": ids * 1.0}),
        ]

    expected = chain([1, 2], [1, 2])
    finding = [first_forward(expected, chain(made, [1, 3]), Comparator(1e-5)) for made in ([1, 3], [1, 2])]
    assert [one and one.module for one in finding] == ["maker", "reader"]
    assert finding[1].detail == "its input `i` already differs, at (1,): expected 2, found 3, made by maker#0"


def test_a_call_that_is_never_made_does_not_hide_what_went_wrong_before():
    """The second call of a head is missing since the draws differ, which shows earlier."""
    x = torch.ones(2)
    expected = [Call(name, n, {"x": x}, {"": x}) for name, n in (("a", 0), ("head", 0), ("head", 1))]
    found = [Call("a", 0, {"x": 2 * x}, {"": 3 * x}), Call("head", 0, {"x": x}, {"": x})]
    first, later = (first_forward(expected[n:], found[n:], Comparator(1e-5)) for n in (0, 1))
    assert (first.module, first.call) == ("a", 0)
    assert (later.module, later.call, later.detail) == ("head", 1, "the port never makes this call")


def chain_of(*calls):
    """Calls of a name, an input and an output."""
    return [
        Call(name, 0, {"x": torch.tensor([1.0, into])}, {"": torch.tensor([1.0, out])}) for name, into, out in calls
    ]


def test_the_largest_factor_beyond_the_bound_is_blamed():
    """A norm a little beyond it, since rounding adds up, is not the place where something is wrong."""
    expected = chain_of(("norm", 0.5, 0.5), ("gate", 0.5, 0.5), ("up", 0.5, 0.5), (WHOLE, 0.5, 0.5))
    found = chain_of(("norm", 0.5, 0.500012), ("gate", 0.500012, 0.501), ("up", 0.501, 0.9), (WHOLE, 0.5, 0.9))
    assert blamed(expected, found) == "gate"
    assert blamed(expected[:1], found[:1]) == "norm"
    assert blamed(expected[2:], found[2:]) == WHOLE  # what its part was given differs


def test_what_agrees_while_its_parts_do_not_is_looked_into():
    """The container's own output stays within the bound, and what comes before and after is a little beyond it."""
    expected = chain_of(*[(name, 0.5, 0.5) for name in ("norm", "mlp.gate", "mlp", "head")])
    found = chain_of(
        ("norm", 0.5, 0.500012), ("mlp.gate", 0.500012, 0.6), ("mlp", 0.500012, 0.500001), ("head", 0.500001, 0.50002)
    )
    assert blamed(expected, found) == "mlp.gate"


def test_another_shape_by_design_takes_no_blame_before_a_wrong_parameter():
    def calls(shape):
        x = torch.ones(shape)
        two = {"": torch.ones(2)}
        return [Call("norm", 0, {"x": x}, two, {"x": x}, two), Call("head", 0, {}, two, {}, two)]

    grads = ({"head.weight": torch.ones(2)}, {"head.weight": torch.tensor([1.0, 1.5])})
    found = first_backward(calls((2, 3)), calls((1, 6)), grads, Comparator(1e-5))
    assert (found.module, found.detail.partition(":")[0]) == ("head", "gradient of head.weight")


def sent_back(*calls):
    """Calls of a name, the gradients of an output and of an input; in the order in which they end."""
    x = {"": torch.ones(2)}
    given = [(name, torch.tensor([1.0, behind]), torch.tensor([1.0, sent])) for name, behind, sent in calls]
    return [Call(name, 0, {"x": x[""]}, x, {"x": sent}, {"": behind}) for name, behind, sent in given]


@pytest.mark.parametrize("parameter", [False, True])
def test_the_largest_factor_of_what_is_sent_back_is_blamed(parameter):
    """Not the first one from the loss back that is a little beyond its bound; what only follows is not either."""
    names = ("up", "mlp.gate_proj", "mlp", "norm")
    expected = sent_back(*[(name, 0.5, 0.5) for name in names])
    gate = 0.500012 if parameter else 0.6
    found = sent_back(
        ("up", 0.6, 0.9), ("mlp.gate_proj", 0.500012, gate), ("mlp", 0.500012, gate), ("norm", 0.5, 0.500012)
    )
    weights = {name: torch.tensor([1.0, 0.5]) for name in ("up.weight", "mlp.gate_proj.weight", "norm.weight")}
    wrong = {**weights, "up.weight": torch.ones(2)} | ({"mlp.gate_proj.weight": torch.zeros(2)} if parameter else {})
    finding = first_backward(expected, found, (weights, wrong), Comparator(1e-5))
    assert finding.module == "mlp.gate_proj"
    alone = first_backward(expected[-1:], found[-1:], ({}, {}), Comparator(1e-5))
    assert alone.module == "norm"


def blamed(expected, found):
    return first_forward(expected, found, Comparator(1e-5)).module


SEEN = torch.ones(4, 4, dtype=torch.bool).tril()
ADDED = torch.zeros(1, 1, 4, 4).masked_fill(~SEEN, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        (SEEN, ADDED, True),
        (ADDED.half(), SEEN[None, None].expand(2, 1, 4, 4), True),
        (SEEN, SEEN.long(), True),
        (SEEN, ADDED.roll(1, -1), False),
        (SEEN, torch.randn(4, 4), False),
        (torch.arange(4), torch.arange(4, dtype=torch.int32)[None], True),
        (torch.arange(4), torch.arange(1, 5), False),
        (torch.arange(2**30, 2**30 + 4), torch.arange(2**30 + 1, 2**30 + 5), False),
        (torch.tensor([0, 2, 7]), torch.tensor([0, 3, 7]), False),
    ],
)
def test_ids_and_masks_of_any_form_must_be_equal(expected, found, equal):
    pair = one_form(expected, found)
    assert (Comparator(1e-5)(*pair) == "") == equal
    calls = Call("m", 0, {"given": expected}), Call("m", 0, {"given": found})
    bound = Tolerance(Kind.RMS, 1e-5, "the test's")
    rows = compare_inputs(RowKey("forward", "case", "port"), *calls, lambda name, dtype: bound)
    assert [(row.quantity, row.tensor, row.passed) for row in rows] == [("in", "m#0.given", equal)]


def test_a_padding_mask_says_nothing_about_a_full_one():
    x = torch.ones(2)
    expected = Call("m", 0, {"x": x, "mask": torch.ones(3, 4, dtype=torch.long)})
    found = Call("m", 0, {"hidden": x, "mask": torch.zeros(3, 1, 4, 4)})
    assert [place for place, *_ in paired_inputs(expected, found)] == ["x"]


def test_the_original_s_module_is_found_through_the_map():
    mine, theirs = lives(OtherEps)
    wrapped = nn.Sequential(theirs.module)
    port = Live(wrapped, lambda: wrapped(IDS))
    names, agree = NameMap({"": "0"}), Comparator(1e-5)
    found = with_operator(Finding("forward", "forward", "0.norm", 0, ""), mine, port, agree, names)
    assert "aten.rsqrt" in found.operator
    assert with_operator(Finding("weights", "setup", "norm", 0, ""), mine, port, agree).operator == ""


def test_a_wrong_loss_is_followed_through_the_loss_function():
    mine, theirs = lives(Model)
    theirs = Live(theirs.module, lambda: theirs.module(IDS).abs().mean())
    found = with_operator(Finding("loss", "forward", LOSS, 0, ""), mine, theirs, Comparator(1e-5))
    assert found.operator.startswith("aten.abs at test_locate.py")
