"""A run observed: values wherever they are, calls told apart, taps, draws replayed and compared."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from parity import Side, Trace, compare_sides, trace_side, unrolled
from parity.calls import tensors_of, watch
from parity.compare import RowKey
from parity.errors import InputError
from parity.observe import Draw, drawing, observe, port_draws, replaced, tap
from parity.samplers import compare_samplers, sampled


@dataclass
class Pair:
    left: Tensor
    right: Tensor | None


class Keyless:
    """A type that is registered with torch's pytrees in the older way."""

    def __init__(self, *held):
        self.held = held


pytree.register_pytree_node(Keyless, lambda one: (list(one.held), None), lambda held, _: Keyless(*held))
ONE, TWO = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (ONE, [""]),
        ((ONE, None, {"a": TWO}), ["0", "2.a"]),
        (Pair(ONE, None), ["left"]),
        (
            BaseModelOutput(last_hidden_state=ONE, hidden_states=(ONE, TWO)),
            ["last_hidden_state", "hidden_states.0", "hidden_states.1"],
        ),
        (OrderedDict(x=[ONE]), ["x.0"]),
        ({"inner": [Pair(ONE, TWO)]}, ["inner.0.left", "inner.0.right"]),
        (torch.nn.utils.rnn.pack_sequence([TWO, TWO]), ["data", "batch_sizes"]),
        (Keyless(ONE, TWO), ["0", "1"]),
        ("text", []),
    ],
)
def test_tensors_are_found_wherever_they_are(value, places):
    assert list(tensors_of(value)) == places


def test_a_block_mask_is_its_dense_form(monkeypatch):
    length, window = 37, 5
    mask = create_block_mask(
        lambda b, h, q, k: (k <= q) & (q - k < window), 1, 1, length, length, device="cpu", BLOCK_SIZE=16
    )
    reach = torch.arange(length)[:, None] - torch.arange(length)
    assert torch.equal(tensors_of({"mask": mask})["mask"], ((reach >= 0) & (reach < window))[None, None])
    monkeypatch.setattr("parity.calls.MOST_ENTRIES", length**2 - 1)
    assert torch.equal(tensors_of(mask)[""], (torch.eye(3) + torch.eye(3).roll(1, 0)).tril().bool()[None, None])


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x, *, add=None, **rest):
        return (x * self.weight + (0 if add is None else add) + rest.get("more", 0), None)


class Outer(nn.Module):
    """The same part twice, one call of it without a gradient; a dict comes out."""

    def __init__(self):
        super().__init__()
        self.part, self.silent = Inner(), nn.Linear(2, 2)

    def forward(self, x):
        with torch.no_grad():
            offset = self.silent(x)
        first, _ = self.part(x, add=offset)
        second, _ = self.part(first, more=torch.ones(2))
        return {"first": first, "second": second, "count": torch.tensor(2)}


def test_calls_are_numbered_and_carry_their_own_gradients():
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


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize(("own", "expected"), [(True, (2.0, 3.0)), (False, (5.0, 5.0))])
def test_readers_of_one_tensor_are_told_apart(own, expected):
    fork = Fork()
    fork.load_state_dict({"a.weight": torch.tensor([[2.0]]), "b.weight": torch.tensor([[3.0]])})
    with watch(fork, own_inputs=own) as calls:
        out = fork(torch.ones(1, requires_grad=True) * 1)
    out.backward()
    assert tuple(float(call.into_grad["input"]) for call in calls[:2]) == expected


class Remembering(nn.Linear):
    """Writes what it has seen into what it is given, as a cache is filled."""

    size = 1.0

    def forward(self, x, seen, held):
        held["last"] = x
        seen.append(super().forward(x) * self.size)
        return torch.stack(seen).sum(0)


class WithCache(nn.Module):
    """Two calls, the second reads what the first wrote; one tensor is handed in three times, which torch looks for."""

    def __init__(self, size=1.0):
        super().__init__()
        self.part, self.mix = Remembering(4, 4), nn.MultiheadAttention(4, 2)
        self.part.size = size

    def forward(self, x):
        self.seen, self.held, self.given = list[Tensor](), dict[str, Tensor](), x
        x = self.part(self.mix(x, x, x)[0], self.seen, self.held)
        found = self.part(x, self.seen, self.held)
        assert len(self.seen) == 2
        assert self.held["last"] is x
        return found


def returned(value):
    return value


def test_hooks_and_taps_leave_every_argument_the_same_object():
    module, x = WithCache(), torch.randn(3, 4, requires_grad=True)
    plain = module(x)
    with observe(module, {f"{HERE}.returned": ("value", "returned")}) as seen:
        found = module(x)
        assert torch.equal(found, plain)
        assert module.given is x
        given = {"a": [x * 1]}
        assert tap("t", given) is returned(given) is given
    found.sum().backward()
    assert {"t#0.a.0", "returned.value#0.a.0", "returned.returned#0.a.0"} == {*seen.taps}
    assert all(call.into_grad for call in seen.calls)


class Watched(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (1 + 1e-6 * len(self._forward_hooks))


@pytest.mark.parametrize("sides", [(Watched, Watched), (Watched, nn.Linear), (nn.Linear, nn.Linear)])
def test_the_observed_loss_is_the_unobserved_one_to_the_bit(sides):
    original, port = (Side(lambda part=part: part(4, 4), name=name) for part, name in zip(sides, ("paper", "mine")))
    rows = compare_sides(original, port, [torch.randn(3, 4)], checks=["environment"]).rows
    found = {row.tensor: row.passed for row in rows if row.quantity == "observed"}
    assert found == {f"loss of {name}": part is not Watched for name, part in zip(("paper", "mine"), sides)}


def test_a_cache_that_is_too_large_is_seen():
    batches = [torch.randn(3, 4)]
    compare_sides(Side(WithCache), Side(WithCache), batches).raise_if_failed()
    assert compare_sides(Side(WithCache), Side(lambda: WithCache(1.5)), batches).failed == ("forward",)


def test_a_forward_that_raises_leaves_no_hook():
    module = Outer()
    with pytest.raises(RuntimeError), watch(module):
        module(torch.ones(3))
    assert not module._forward_hooks
    assert not module.part._forward_pre_hooks


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Linear(2, 2)

    def forward(self, x):
        return self.part(x)


def squashed(x):
    return tap("small", x.tanh())


class Kept(Plain):
    def forward(self, x):
        return squashed(self.part(x))


class Again(Plain):
    def forward(self, x):
        return checkpoint(lambda x: squashed(self.part(x)), x, use_reentrant=False)


def test_what_checkpointing_repeats_is_no_call_and_no_tap():
    taps = {f"{HERE}.squashed": {"x": "whole"}}
    x, seen = torch.ones(1, 2, requires_grad=True), []
    for module in (Kept(), Again()):
        with observe(module, taps) as found:
            loss = module(x).square().sum()
        loss.backward()
        seen.append(found)
    assert [[*one.taps] for one in seen] == [[*one.tap_grads] for one in seen] == [["whole#0", "small#0"]] * 2
    assert [[call.key for call in one.calls] for one in seen] == [["part#0", "(whole)#0"]] * 2
    grads = [grad for one in seen for grad in (one.tap_grads["whole#0"], one.calls[0].into_grad["input"])]
    assert all(grad.abs().sum() > 0 for grad in grads)
    compare_sides(Side(Kept, taps=taps), Side(Again, taps=taps), [x]).raise_if_failed()


# taps and draws: a module whose labels, loss and anchors live in functions


def labels(ids, *, shift=1):
    return ids.roll(-shift, -1)


def terms(hidden, target, **rest):
    return (hidden - target).square().mean(), {"rows": rest["keep"].sum()}


class Picker:
    @staticmethod
    def anchors(count):
        return torch.randperm(count)[:3]


imported = labels
HERE = "tests.parity.test_observe"
TAPS = {
    f"{HERE}.labels": ("returned", "ids", "shift"),
    f"{HERE}:terms": {"hidden": "states", "keep": "mask", "returned": "t"},
}
NOISE = Draw("noise", "torch:Tensor.uniform_", "torch:Tensor.uniform_", given=lambda drawn: drawn[None])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Linear(4, 4)

    def forward(self, x):
        hidden, target, picked = tap("hidden", self.part(x)), tap("target", imported(x)), Picker.anchors(4)
        loss, _ = terms(hidden[:, picked], target[:, picked], keep=torch.ones(4, dtype=torch.bool))
        return tap("loss", loss) + tap("loss", hidden.sum() * 0.5)


def test_a_tap_is_nothing_outside_of_a_run():
    assert tap("x", value := torch.ones(2, requires_grad=True)) is value


def test_taps_from_inside_and_outside_keep_values_and_gradients_of_every_call():
    with observe(module := Reader(), TAPS) as seen:
        loss = module(x := torch.randn(2, 4))
    loss.backward()
    assert [name for name in seen.taps if "." not in name] == [
        "hidden#0",
        "target#0",
        "states#0",
        "mask#0",
        "loss#0",
        "loss#1",
    ]
    assert {"labels.ids#0", "labels.returned#0", "t#0.0", "t#0.1.rows"} <= set(seen.taps)
    assert torch.equal(seen.taps["target#0"], x.roll(-1, -1))
    assert torch.equal(seen.tap_grads["loss#1"], torch.ones(()))
    assert min(seen.tap_grads[name].abs().max() for name in ("hidden#0", "states#0")) > 0
    assert "target#0" not in seen.tap_grads
    assert imported is labels
    seen.keep(trace := Trace("port", "case", "float32"))
    assert {"mb0.tap.loss#1", "mb0.tap_grad.hidden#0", "mb0.call.part#0.into.input"} <= set(trace.tensors)


@pytest.mark.parametrize(
    ("target", "word", "message"),
    [
        *(
            (name, "returned", f"function: found {name}")
            for name in (f"{HERE}.nothing", f"{HERE}:Picker.no", "a.b", "torch")
        ),
        (f"{HERE}.labels", "id", "labels: found id, expected returned or one of its arguments: ids, shift"),
    ],
)
def test_a_function_or_argument_that_is_not_there_is_named(target, word, message):
    with pytest.raises(InputError, match=message), observe(Reader(), taps={target: (word,)}):
        pass


def test_what_was_replaced_comes_back_after_an_error():
    before = labels, imported, vars(torch.Tensor).get("uniform_")
    with pytest.raises(ZeroDivisionError), observe(Reader(), TAPS), drawing({NOISE: NOISE.port}):
        raise ZeroDivisionError
    assert (labels, imported, vars(torch.Tensor).get("uniform_")) == before


def test_a_name_that_came_between_two_replacements_is_replaced_too(monkeypatch):
    """No module came with it, or not even the name: another's stand-in was there at the first."""
    with monkeypatch.context() as before:
        before.setattr(f"{HERE}.imported", None)
        with replaced(f"{HERE}:labels", lambda real: real):
            pass
    with replaced(f"{HERE}:labels", lambda real: "stand-in"):
        assert imported == labels == "stand-in"
    monkeypatch.setattr(f"{HERE}.late", labels, raising=False)
    with replaced(f"{HERE}:labels", lambda real: "stand-in"):
        assert globals()["late"] == imported == "stand-in"


DRAWS = [
    Draw("anchors", f"{HERE}:Picker.anchors", f"{HERE}:Picker.anchors"),
    Draw("anchors", f"torch:randperm@{HERE}", f"torch:randperm@{HERE}:anchors"),
]


@pytest.mark.parametrize("draw", DRAWS, ids=["function", "call site"])
def test_what_one_side_drew_is_replayed_in_the_other(draw):
    x, losses, module = torch.randn(2, 4), [], Reader()
    torch.manual_seed(1)
    with drawing({draw: draw.original}) as first:
        losses.append(module(x))
    torch.manual_seed(2)
    losses.append(module(x))
    torch.manual_seed(2)
    with drawing({draw: draw.port}, first.draws) as second:
        losses.append(module(x))
    assert list(first.draws) == ["anchors#0"]
    assert torch.equal(first.draws["anchors#0"], second.draws["anchors#0"])
    assert losses[0] == losses[2] != losses[1]


@dataclass
class Found:
    logits: Tensor
    rows: dict[str, Tensor]


def objective(found):
    return found.logits.sum() + found.rows["b"].sum(), {"ce": found.logits.mean().detach()}


class Objects(nn.Linear):
    def forward(self, x):
        return objective(Found(super().forward(x), {"b": x}))[0]


def test_a_tap_reaches_into_what_a_function_is_given_and_returns():
    taps = {f"{HERE}.objective": {"found.logits": "logits", "found.rows.b": "b", "returned.1.ce": "ce"}}
    x, module = torch.randn(2, 4), Objects(4, 3)
    with observe(module, taps) as seen:
        loss = module(x)
    loss.backward()
    assert {*seen.taps} == {"logits#0", "b#0", "ce#0"}
    assert torch.equal(seen.taps["b#0"], x)
    assert torch.equal(seen.taps["ce#0"], seen.taps["logits#0"].mean())
    assert torch.equal(seen.tap_grads["logits#0"], torch.ones(2, 3))
    wrong, message = (
        {f"{HERE}.objective": {"found.logit": "l"}},
        r"tap: l: found nothing at logit, expected one of logits",
    )
    with pytest.raises(InputError, match=message), observe(module, wrong):
        module(x)


def test_a_list_of_another_length_is_replayed():
    """How many are drawn is the business of ``samplers``."""
    with drawing({DRAWS[0]: DRAWS[0].port}, {"anchors#0": torch.tensor([[3, 1]])}):
        assert Picker.anchors(4).tolist() == [3, 1]


def test_samplers_of_several_tensors_are_compared_by_what_is_made_of_them():
    """The planted fault: each tensor has the same candidates, the two together have not."""
    draw = Draw("both", "", "", values=lambda anchors, depths: 10 * anchors + depths)
    straight = sampled(draw, lambda: (torch.arange(3), torch.arange(3)), range(20))
    crossed = sampled(draw, lambda: (torch.arange(3), torch.arange(3).flip(0)), range(20))
    rows = {row.quantity: row for row in compare_samplers(RowKey("samplers", "one", "port"), "both", straight, crossed)}
    assert "3 / 3 candidates; only original: 0, 22; only port: 2, 20" in rows["candidates"].detail
    assert not rows["candidates"].passed
    firsts = [(torch.arange(3), depths) for depths in (torch.arange(3), torch.arange(3).flip(0))]
    alone = [sampled(replace(draw, values=None), partial(tuple, one), range(20)) for one in firsts]
    assert all(row.passed for row in compare_samplers(RowKey("samplers", "one", "port"), "both", *alone))


def test_draws_elsewhere_are_let_alone():
    with drawing({DRAWS[0]: "torch:randperm@elsewhere"}) as seen:
        Reader()(torch.randn(2, 4))
    assert seen.draws == {}


def noise(*shape):
    return torch.zeros(shape).uniform_(-1, 1)


def test_a_draw_in_place_and_in_another_layout_is_replayed():
    with drawing({NOISE: NOISE.original}) as first:
        expected = noise(6)
    for replayed in (port_draws([NOISE], first.draws), first.draws):  # dimensions of one are no other layout
        with drawing({NOISE: NOISE.port}, replayed):
            assert torch.equal(noise(1, 6)[0], expected)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 6)], r"noise#0: found shape \(1, 6\), expected shape \(2, 6\)"),
        ([(2, 3)], r"noise#0: found shape \(1, 6\), expected shape \(2, 3\)"),
        ([(1, 6), (1, 6)], "noise#1: found nothing"),
    ],
)
def test_a_draw_that_does_not_fit_is_refused(shapes, message):
    replayed = port_draws([NOISE], {"noise#0": torch.zeros(6)})
    with pytest.raises(InputError, match=message), drawing({NOISE: NOISE.port}, replayed):
        assert [noise(*shape) for shape in shapes]


def picks(low, high, count=3, **weights):
    """200 draws without replacement of the numbers from ``low`` on."""
    chances = torch.ones(high - low)
    chances[0] = weights.get("first", 1.0)
    source = torch.Generator().manual_seed(low + high + count)
    return [torch.multinomial(chances, count, generator=source) + low for _ in range(200)]


def floats(scale, shift=0.0, size=20):
    source = torch.Generator().manual_seed(int(100 * scale + 10 * shift))
    return [torch.randn(size, generator=source) * scale + shift for _ in range(200)]


def drawn_by(draw, seed=7):
    """200 draws from one generator."""
    source = torch.Generator().manual_seed(seed)
    return [draw(source) for _ in range(200)]


def shuffled(source):
    return torch.randperm(12, generator=source)


def even(source):
    """Mean 0 and deviation 0.2887, as ``floats(0.2887)``."""
    return torch.rand(20, generator=source) - 0.5


def scaled(source):
    """Zeros and one other number."""
    return (torch.rand(20, generator=source) > 0.1) / torch.tensor(0.9)


def repeated(source):
    """One number 20 times: entries that depend on each other."""
    return torch.rand(1, generator=source).expand(20)


ONES = drawn_by(lambda source: torch.rand(1, generator=source).flatten())


@pytest.mark.parametrize(
    ("expected", "found", "failed", "words"),
    [
        (picks(0, 20), picks(0, 20, first=1.0001), [], "20 / 20 candidates"),
        (picks(0, 20), picks(0, 22), ["candidates"], "only port: 20, 21"),
        (picks(0, 22), picks(2, 22), ["candidates"], "only original: 0, 1"),
        (picks(0, 20), picks(0, 20, first=4.0), ["frequency"], "0 in 0."),
        (picks(0, 9), picks(0, 9, 4), ["number drawn"], "3 / 4"),
        (floats(1.0), floats(1.01), [], "/"),
        (floats(1.0), floats(1.0, 0.2), ["mean", "distribution"], "/ 0.195"),
        (floats(1.0), floats(1.2), ["std", "distribution"], "/ 1.1"),
        (drawn_by(shuffled), drawn_by(shuffled, 8), [], "12 / 12 candidates"),
        (drawn_by(shuffled), [torch.arange(12)] * 200, ["order"], "at place"),
        (picks(0, 20), [draw.sort().values for draw in picks(0, 20, 3)], ["order"], "at place 0"),
        (picks(0, 9, 4), drawn_by(lambda s: torch.randint(9, (4,), generator=s)), ["number drawn"], "different"),
        (floats(0.2887), drawn_by(even), ["distribution"], "of them up to"),
        (drawn_by(even), [draw.sort().values for draw in drawn_by(even, 8)], ["order"], "at place"),
        (drawn_by(repeated), drawn_by(repeated, 8), [], "/"),
        (drawn_by(repeated), [draw + 0.5 for draw in drawn_by(even)], ["std"], "of the draws' means"),
        (drawn_by(scaled), [draw * (1 + 1e-7) for draw in drawn_by(scaled, 8)], [], "/"),
        (ONES, ONES, [], "0.274298 / 0.274298"),
        (ONES, drawn_by(lambda source: torch.rand(1, generator=source), 8), [], "/"),
        (ONES, [draw - 0.5 for draw in ONES], ["mean", "distribution"], "/"),
        (ONES, [0.2 * draw + 0.4 for draw in ONES], ["std", "distribution"], "/"),
        (picks(0, 9), [], ["draws"], "drawn 0 times, expected 200"),
    ],
)
def test_samplers_are_compared_as_such(expected, found, failed, words):
    rows = compare_samplers(RowKey("samplers", "one", "port"), "anchors", expected, found)
    assert [row.quantity for row in rows if not row.passed] == failed
    assert words in "; ".join(row.detail for row in rows if row.passed == (not failed))


def test_a_side_is_sampled_over_seeds():
    draw, run = DRAWS[0], lambda: Picker.anchors(5)
    found, again = (sampled(draw, run, range(40)) for _ in range(2))
    assert [len(one) for one in found] == [3] * 40
    assert {int(entry) for one in found for entry in one} == set(range(5))
    assert all(map(torch.equal, found, again))
    masked = Draw("m", draw.original, "", values=lambda drawn: drawn[drawn > 0])
    assert min(int(one.min()) for one in sampled(masked, run, range(40))) == 1


class Recurrent(nn.Module):
    """Two steps on its own output; ``cut``: the second sends nothing back through the first."""

    def __init__(self, cut=False, says=True):
        super().__init__()
        self.cell, self.cut, self.says = nn.Linear(3, 3), cut, says

    def forward(self, x):
        first = x.clone().requires_grad_()
        states = [first, self.cell(first)]
        states[1] = states[1].detach().requires_grad_() if self.cut else states[1]
        losses = [self.cell(state).square().mean() for state in states]
        if self.says:
            unrolled(losses, states)
        return torch.stack(losses).sum()


def recurrent(name, **words):
    return Side(partial(Recurrent, **words), lambda module, x: module(x), name=name)


@pytest.mark.parametrize("cut", [False, True])
def test_a_pair_says_that_its_draft_is_unrolled(cut):
    report = compare_sides(recurrent("a"), recurrent("b", cut=cut), [torch.ones(2, 3)], steps=1)
    paths = {row.tensor: row.passed for row in report.rows if row.check == "cross_step_grad" and row.compared}
    assert paths == {"mb0.path.0.0": True, "mb0.path.1.0": not cut, "mb0.path.1.1": True}
    assert report.failed[:1] == (("cross_step_grad",) if cut else ())


def test_looking_at_paths_leaves_what_the_backward_sends():
    said, silent = (trace_side(recurrent("a", says=says), [torch.ones(2, 3)], steps=1) for says in (True, False))
    assert {*said.tensors} - {*silent.tensors} >= {"mb0.path.1.0", "mb0.step0.loss", "mb0.step1.loss"}
    assert all(torch.equal(value, said.tensors[name]) for name, value in silent.tensors.items())


def shown(shift):
    """A loss of targets, which are tapped first though another name comes before theirs."""

    def loss(module, x):
        targets = tap("targets", x.roll(shift, 0))
        return tap("loss_of_step", (module(x) - targets).square().mean())

    return Side(lambda: nn.Linear(2, 2), loss)


def test_the_first_tap_that_is_wrong_is_named_not_the_first_by_its_letters():
    report = compare_sides(shown(0), shown(1), [torch.tensor([[1.0, 2.0], [3.0, 5.0]])], checks=["forward"])
    assert [row.tensor for row in report.rows if not row.passed] == ["mb0.tap.targets#0", "mb0.tap.loss_of_step#0"]
