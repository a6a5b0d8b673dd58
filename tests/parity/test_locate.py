"""Planted faults are found where they are: in which module, by which input, at which operator and line.

Two pairs: a layer that the project has never seen, and a small model whose ids, positions and masks are made outside of
any module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from parity import NameMap, compare_sides, single_step
from parity.calls import WHOLE, Call, watch
from parity.compare import Subject
from parity.locate import (
    LOSS,
    Finding,
    compare_inputs,
    first_backward,
    first_forward,
    one_form,
    paired_inputs,
    within,
)
from parity.operators import Live, first_apart, follow, with_operator
from parity.tolerances import Kind, Tolerance
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
    example, checks = load(), {"forward": "forward", "backward": "gradients", "setup": "configuration"}
    report = compare_sides(example.ORIGINAL, side_with(plant), example.batches(), names=example.NAMES)
    direction = "setup" if plant is frozen_value else direction  # what is not trained is said before any step
    assert not report.passed
    assert report.first is not None
    assert (report.first.direction, report.first.module) == (direction, module), str(report.first)
    assert report.failed[0] == checks[direction]


@pytest.mark.parametrize(("plant", "direction", "module"), FAULTS.values(), ids=FAULTS)
def test_a_single_step_finds_the_module_and_no_other(plant: Plant, direction: str, module: str) -> None:
    example = load()
    report = single_step(example.ORIGINAL, side_with(plant), example.batches()[0], names=example.NAMES)
    assert report.first is not None
    assert (report.first.direction, report.first.module) == (direction, module), str(report.first)
    assert {row.run for row in report.rows if row.status.value == "failed"} == {module}
    assert " at " in report.first.operator
    assert ("(backward)" in report.first.operator) == (direction == "backward")


# a model in two files of functions: what goes wrong between modules is found at its line

WIDTH, LENGTH = 8, 7


class Block(nn.Module):
    """Attention over positions that are added to the states; a mask says who is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        q, k = turned(self.q(x), positions), turned(self.k(x), positions)
        return x + self.o(attend(q, k, self.v(x), mask))


def turned(x: Tensor, positions: Tensor) -> Tensor:
    return x * torch.cos(positions[..., None] * 0.3)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT / WIDTH**0.5).masked_fill(~mask, float("-inf")).softmax(-1) @ v


def causal(length: int, ahead: int = 0) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril(ahead)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(40, WIDTH), Block(), nn.RMSNorm(WIDTH, eps=1e-5)
        self.head = nn.Linear(WIDTH, 40, bias=False)

    def forward(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        positions = self.places(ids) if position_ids is None else position_ids
        x = self.block(self.embed(self.shifted(ids)), positions, self.mask(ids))
        return self.head(self.mixed(self.norm(x)))

    def places(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[-1])

    def shifted(self, ids: Tensor) -> Tensor:
        return ids.roll(1, -1)

    def mask(self, ids: Tensor) -> Tensor:
        return causal(ids.shape[-1])

    def mixed(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.tanh()


class PositionsOff(Model):
    def places(self, ids: Tensor) -> Tensor:
        return torch.arange(1, ids.shape[-1] + 1)  # fault: positions


class MaskOff(Model):
    def mask(self, ids: Tensor) -> Tensor:
        return causal(ids.shape[-1], ahead=1)  # fault: mask


class IdsOff(Model):
    def shifted(self, ids: Tensor) -> Tensor:
        return ids.roll(2, -1)  # fault: ids


class OtherOperator(Model):
    def mixed(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.sigmoid()  # fault: operator


class LeftOut(Model):
    def mixed(self, x: Tensor) -> Tensor:
        return 0.5 * x.tanh()


class Detached(Model):
    def mixed(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.detach().tanh()


class SwappedArguments(Model):
    def __init__(self) -> None:
        super().__init__()
        forward = self.block.forward
        self.block.forward = lambda x, positions, mask: swapped(forward, x, positions, mask)  # type: ignore[assignment]


def swapped(forward: Any, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    return forward(x, positions, mask.mT | mask.diagonal().diag())


class OtherEps(Model):
    def __init__(self) -> None:
        super().__init__()
        self.norm.eps = 1e-2


class QuietlyOff(Model):
    """The same numbers in another way, and one fault in them."""

    def mixed(self, x: Tensor) -> Tensor:
        scaled = 2 * x
        return scaled / 2 + (scaled.exp() - 1) / (scaled.exp() + 1) * 0.6  # fault: factor


def line(words: str) -> str:
    """Where something stands in this file."""
    with open(__file__) as text:
        numbers = [n for n, one in enumerate(text, 1) if words in one and "line(" not in one]
    return f"test_locate.py:{numbers[0]}"


IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 3, 2, 38]])

# the port, the module that is blamed, what is said of its inputs, what stands in the operator's words
BLAMED: dict[str, tuple[type[Model], str, str, str, str]] = {
    "positions": (
        PositionsOff,
        "forward",
        WHOLE,
        "block#0: its input `positions` already differs, at (0,): expected 0, found 1, made outside of any module",
        "aten.arange at {fault: positions} / aten.arange at {return torch.arange(ids.shape[-1])}",
    ),
    "mask": (
        MaskOff,
        "forward",
        WHOLE,
        "block#0: its input `mask` already differs, at (0, 1): expected False, found True, made outside of any module",
        "aten.tril at {.tril(ahead)} / aten.tril at {.tril(ahead)}",
    ),
    "ids": (
        IdsOff,
        "forward",
        WHOLE,
        "embed#0: its input `input` already differs, at (0, 0): expected 35, found 5, made outside of any module",
        "aten.roll at {fault: ids} / aten.roll at {return ids.roll(1, -1)}",
    ),
    "operator": (
        OtherOperator,
        "forward",
        WHOLE,
        "head#0: its input `input` already differs",
        "aten.sigmoid at {fault: operator} / aten.tanh at {return x + 0.5 * x.tanh()}",
    ),
    "left out": (
        LeftOut,
        "forward",
        WHOLE,
        "head#0: its input",
        " / aten.add at {return x + 0.5 * x.tanh()}",
    ),
    "swapped": (SwappedArguments, "forward", "block", "o#0: its input", "{mask.mT | mask.diag}"),
    "eps": (OtherEps, "forward", "norm", "largest at", " / aten.rsqrt at {return self.head(self.mixed(self.norm}"),
    "another way": (QuietlyOff, "forward", WHOLE, "head#0: its input", "{fault: factor}"),
    "detached": (Detached, "backward", WHOLE, "", " / aten.mul (backward) at {return x + 0.5 * x.tanh()}"),
}


def lives(port: type[Model]) -> tuple[Live, Live]:
    torch.manual_seed(0)
    mine, theirs = Model(), port()
    theirs.load_state_dict(mine.state_dict())
    return tuple(Live(one, lambda one=one: one(IDS).square().mean()) for one in (mine, theirs))  # type: ignore[return-value]


def found(port: type[Model]) -> Finding | None:
    """Forward, then backward."""
    calls, grads = [], []
    for live in lives(port):
        with watch(live.module) as seen:
            loss = live.run()
        loss.backward()
        calls.append(seen)
        grads.append(live.gradients())
    agree = within(1e-5)
    return first_forward(*calls, agree) or first_backward(*calls, tuple(grads), agree)  # type: ignore[arg-type]


@pytest.mark.parametrize(("port", "direction", "module", "detail", "operator"), BLAMED.values(), ids=BLAMED)
def test_module_input_and_operator_are_named(
    port: type[Model], direction: str, module: str, detail: str, operator: str
) -> None:
    finding = found(port)
    assert finding is not None
    assert (finding.direction, finding.module) == (direction, module), str(finding)
    assert detail in finding.detail
    whole = with_operator(finding, *lives(port), within(1e-5))
    for words in operator.replace("}", "{").split("{")[1::2]:
        operator = operator.replace(f"{{{words}}}", line(words))
    assert operator in whole.operator
    assert f"; first operator: {whole.operator}" in str(whole)


def test_the_same_in_another_way_is_no_fault() -> None:
    class Otherwise(Model):
        def mixed(self, x: Tensor) -> Tensor:
            scaled = 2 * x
            return scaled / 2 + (scaled.exp() - 1) / (scaled.exp() + 1) * 0.5

    assert found(Otherwise) is None
    mine, theirs = lives(Otherwise)
    runs = follow(mine, WHOLE, 0), follow(theirs, WHOLE, 0)
    agree = within(1e-5)
    assert all(agree(first.tensor, second.tensor) for first, second in zip(runs[0].last, runs[1].last))


class Straight(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).tanh() * 3


class Across(nn.Module):
    """The other axis first; the fault is the last factor."""

    def forward(self, x: Tensor) -> Tensor:
        inner = (x.mT * 2).tanh()
        return (inner * 4).mT  # fault: after turning


def test_values_are_known_in_another_layout() -> None:
    x = torch.randn(3, 5)
    runs = [follow(Live(module, lambda module=module: module(x)), WHOLE, 0) for module in (Straight(), Across())]
    assert first_apart(*runs, within(1e-5)).startswith(f"aten.mul at {line('fault: after turning')} /")


def test_an_input_of_the_model_s_own_is_said_to_be_one() -> None:
    mine, _ = lives(Model)
    calls = []
    for positions in (torch.arange(LENGTH), torch.arange(LENGTH) + torch.eye(LENGTH, dtype=torch.long)[4]):
        with watch(mine.module) as seen:
            mine.module(IDS, position_ids=positions)
        calls.append(seen)
    finding = first_forward(*calls, within(1e-5))
    assert finding is not None
    assert finding.module == WHOLE
    assert (
        finding.detail
        == "its input `position_ids` already differs, at (4,): expected 4, found 5, which is the model's own"
    )


def test_another_module_s_output_is_said_to_be_one() -> None:
    """The maker agrees in what the bound allows, the reader's input must be equal."""

    def chain(ids: Tensor) -> list[Call]:
        states = torch.ones(3)
        return [Call("maker", 0, {"x": states}, {"": ids}), Call("reader", 0, {"ids": ids}, {"": ids * 1.0})]

    finding = first_forward(chain(torch.tensor([1, 2])), chain(torch.tensor([1, 3])), lambda *pair: torch.equal(*pair))
    assert finding is not None
    assert finding.module == "maker"
    other = chain(torch.tensor([1, 3]))
    other[0].out[""] = torch.tensor([1, 2])
    finding = first_forward(chain(torch.tensor([1, 2])), other, lambda *pair: torch.equal(*pair))
    assert finding is not None
    assert finding.detail == "its input `ids` already differs, at (1,): expected 2, found 3, made by maker#0"


def test_a_call_that_is_never_made_does_not_hide_what_went_wrong_before() -> None:
    """The second call of a head is missing since the draws differ, which shows earlier."""
    x = torch.ones(2)
    expected = [Call("a", 0, {"x": x}, {"": x}), Call("head", 0, {"x": x}, {"": x}), Call("head", 1, {"x": x}, {"": x})]
    found = [Call("a", 0, {"x": 2 * x}, {"": 3 * x}), Call("head", 0, {"x": x}, {"": x})]
    finding = first_forward(expected, found, within(1e-5))
    assert finding is not None
    assert (finding.module, finding.call) == ("a", 0)
    finding = first_forward(expected[1:], found[1:], within(1e-5))
    assert finding is not None
    assert (finding.module, finding.call, finding.detail) == ("head", 1, "the port never makes this call")


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
def test_ids_and_masks_of_any_form_must_be_equal(expected: Tensor, found: Tensor, equal: bool) -> None:
    pair = one_form(expected, found)
    assert within(1e-5)(*pair) == equal
    calls = Call("m", 0, {"given": expected}), Call("m", 0, {"given": found})
    rows = compare_inputs(Subject("forward", "case", "port"), *calls, Tolerance(Kind.OF_MAX, 1e-5, None, "the test's"))
    assert [(row.quantity, row.tensor, row.passed) for row in rows] == [("in", "m#0.given", equal)]


def test_a_padding_mask_says_nothing_about_a_full_one() -> None:
    x = torch.ones(2)
    expected = Call("m", 0, {"x": x, "mask": torch.ones(3, 4, dtype=torch.long)})
    found = Call("m", 0, {"hidden": x, "mask": torch.zeros(3, 1, 4, 4)})
    assert [place for place, *_ in paired_inputs(expected, found)] == ["x"]


class Flex(nn.Module):
    def __init__(self, window: int, dense: bool = False) -> None:
        super().__init__()
        self.inner, self.window, self.dense = FlexInner(), window, dense

    def forward(self, x: Tensor) -> Tensor:
        reach = lambda b, h, q, k: (q >= k) & (q - k < self.window)  # noqa: E731
        mask = create_block_mask(reach, 1, 1, 16, 16, device="cpu", BLOCK_SIZE=8)
        return self.inner(x, mask)


class FlexInner(nn.Module):
    def forward(self, x: Tensor, block_mask: Any) -> Tensor:
        return flex_attention(x, x, x, block_mask=block_mask)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_block_mask_off_by_one_is_an_input_that_differs() -> None:
    x = torch.randn(1, 2, 16, 16)
    sides = [Live(module := Flex(window), lambda module=module: module(x)) for window in (3, 4)]
    calls = []
    for side in sides:
        with torch.no_grad(), watch(side.module) as seen:
            side.run()
        calls.append(seen)
    finding = first_forward(*calls, within(1e-5))
    assert finding is not None
    assert finding.module == WHOLE
    assert (
        "inner#0: its input `block_mask` already differs, at (0, 0, 3, 0): expected False, found True" in finding.detail
    )
    with torch.no_grad():
        assert "flex_attention" in first_apart(*(follow(side, WHOLE, 0) for side in sides), within(1e-5))


def test_the_original_s_module_is_found_through_the_map() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = OtherEps()

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids)

    torch.manual_seed(0)
    mine, theirs = Model(), Wrapped()
    theirs.model.load_state_dict(mine.state_dict())
    sides = [Live(one, lambda one=one: one(IDS)) for one in (mine, theirs)]
    finding = Finding("forward", "forward", "model.norm", 0, "")
    whole = with_operator(finding, *sides, within(1e-5), NameMap({"": "model"}))  # type: ignore[call-arg]
    assert "aten.rsqrt" in whole.operator
    assert with_operator(Finding("weights", "setup", "norm", 0, ""), *sides, within(1e-5)).operator == ""  # type: ignore


def test_a_wrong_loss_is_followed_through_the_loss_function() -> None:
    sides = lives(Model)
    sides = sides[0], Live(sides[1].module, lambda: sides[1].module(IDS).abs().mean())
    whole = with_operator(Finding("loss", "forward", LOSS, 0, ""), *sides, within(1e-5))
    assert whole.operator.startswith("aten.abs at test_locate.py")
