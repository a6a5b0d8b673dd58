"""Every check, and no other, finds the fault it is there for, planted in a net of two layers or in a trace."""

from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from parity import CHECKS, Clip, Kind, ParityError, Side, Tolerance, Trace, compare_sides, compare_traces, trace_side
from parity.errors import InputError
from parity.samplers import SAMPLES
from parity.setup import pattern_loss
from parity.verdict import Against, Status

AUDITS = set()
"""Checks whose rows another file makes, with the tests that plant their faults."""


def test_a_port_that_says_nothing_of_its_steps_has_failed_rows():
    trace = trace_side(Side(lambda: nn.Linear(6, 6)), batches(), steps=2)
    unrolled = replace(trace, curve=[replace(point, step_losses=(1.0, 2.0)) for point in trace.curve])
    last = replace(trace, curve=[replace(point, step_losses=(1.0,)) for point in trace.curve])
    for port, lost in ((trace, {0, 1}), (last, {1}), (unrolled, set())):
        rows = compare_traces(unrolled, port, checks=["curve"]).rows
        assert {row.tensor for row in rows if not row.passed} == {f"loss of step {n}" for n in lost}
    assert compare_traces(trace, unrolled).passed  # a pair that does not say what an original's steps are


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        return self.down(self.up(x).tanh())


def batches():
    return [torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def changed(change, dtype=torch.float32):
    """Builds of the net with something done to them."""

    def build():
        net = Net().to(dtype)
        change(net)
        return net

    return build


def gives(part, change, dtype=torch.float32):
    """A part of the net, or by the empty name the whole, gives what ``change`` makes of its output."""

    def plant(net):
        net.get_submodule(part).register_forward_hook(lambda module, args, out: change(out))

    return changed(plant, dtype)


def calls(inner):
    """The net calls another module than its own two once more, or one of those."""

    def change(net):
        net.extra = nn.Identity()
        net.register_forward_hook(lambda module, args, out: out + 0 * net.get_submodule(inner)(args[0]).sum())

    return changed(change)


def detached(net):
    bias = net.down.bias
    net.down.forward = lambda x: nn.functional.linear(x, net.down.weight, bias.detach())


def counting(net, given):
    net.seen += 1


def wasteful(net):
    def forward(x):
        for _ in range(200):
            nn.functional.linear(x, net.up.weight)
        return Net.forward(net, x)

    net.forward = forward


def adamw(parameters, **settings):
    return torch.optim.AdamW(parameters, **{"lr": 1e-3, **settings})


def save_coarsely(module, folder):
    save_file({name: value.bfloat16().float() for name, value in module.state_dict().items()}, folder / "net.st")


def load(folder):
    net = Net()
    net.load_state_dict(load_file(folder / "net.st"))
    return net


def momentum(module, optimizer):
    """A velocity that is kept where no checkpoint looks."""
    for parameter in module.parameters():
        parameter.velocity = 0.9 * getattr(parameter, "velocity", 0.0) + parameter.grad
        parameter.grad = parameter.velocity.clone()
    optimizer.step()


def clipping(module, optimizer):
    nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    optimizer.step()


def clipping_late(module, optimizer):
    made = optimizer.state[module.up.bias].get("step", 0)
    (clipping if made >= 2 else Side.step)(module, optimizer)


def without_decay(module, optimizer):
    optimizer.param_groups[0].update(weight_decay=0.0)
    optimizer.step()


def decaying(parameters, *places):
    """Those parameters decay, the others do not."""
    parts = [[one for n, one in enumerate(parameters) if (n in places) is on] for on in (True, False)]
    return adamw([{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}])


LOUDER = Side(gives("up", lambda out: out * 1.1))


def fault(name, found, port, **changes):
    """The checks that find it, the port, further arguments."""
    return pytest.param(tuple(found.split()), port, changes, id=name)


def harms(name, found, change, **changes):
    """A fault done to the net."""
    return fault(name, found, Side(changed(change)), **changes)


def falling(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


FAULTS = (
    harms("another start", "weights", lambda net: net.up.bias.data.add_(1e-6), copy_weights=False),
    harms("no numbers", "weights", lambda net: net.up.bias.data.div_(0), copy_weights=False),
    harms("a buffer on one side", "weights", lambda net: net.register_buffer("extra", torch.zeros(2))),
    fault("another function", "forward", LOUDER),
    fault("a module on one side", "forward", Side(calls("extra"))),
    fault("a module called once more", "forward", Side(calls("up"))),
    fault("another loss", "loss", Side(Net, lambda module, batch: pattern_loss(module, batch) * 1.001)),
    harms("a bias detached", "gradients gradient_flow", detached),
    harms("a bias frozen", "configuration gradients gradient_flow", lambda net: net.down.bias.requires_grad_(False)),
    fault("another decay", "configuration optimizer_step", Side(Net, optimizer=lambda ps: adamw(ps, weight_decay=0.5))),
    fault(
        "a group without decay", "configuration optimizer_step", Side(Net, optimizer=lambda ps: decaying(ps, 1, 2, 3))
    ),
    fault("decay off by hand", "configuration optimizer_step", Side(Net, step=without_decay)),
    fault("the step made twice", "optimizer_step", Side(Net, step=lambda net, adam: (adam.step(), adam.step())[0])),
    harms("a buffer that counts", "optimizer_step", lambda net: net.register_forward_pre_hook(counting)),
    fault("another schedule", "curve", Side(Net, schedule=falling)),
    fault("saved in bfloat16", "round_trip", Side(Net, save=save_coarsely, load=load)),
    fault("clipping on one side", "clip", Side(Net, step=clipping)),
    fault("clipping from the third step on", "clip", Side(Net, step=clipping_late)),
    fault("clipping that was not said", "clip", Side(Net, step=clipping, clip=Clip("norm", 0.2))),
    fault("another rate than said", "schedule", Side(Net, rate=lambda n: 1.03e-3)),
    harms("drawn wider", "initialisation", lambda net: net.up.weight.data.mul_(2), checks=["initialisation", "loss"]),
    harms("work for nothing", "throughput", wasteful, checks=(*CHECKS, "throughput")),
)


@pytest.mark.parametrize(("found", "port", "changes"), FAULTS)
def test_the_checks_alone_find_the_fault(found, port, changes):
    report = compare_sides(Side(Net), port, batches(), **changes)
    assert report.failed == found
    assert report.first.check == found[0]
    with pytest.raises(ParityError, match=found[0]):
        report.raise_if_failed()


def test_clip_limits_that_no_gradient_reaches_are_named():
    """No number differs, whatever is clipped."""
    original, port = (Side(Net, lambda net, x: pattern_loss(net, x) / 99, step=Clip("norm", n)) for n in (1.0, 0.5))
    report = compare_sides(original, port, batches())
    assert report.failed == ("configuration",)
    found = {row.tensor: row.detail for row in report.rows if not row.passed and row.compared}
    assert found == {"clip.limit": "found 0.5, expected 1.0"}


def test_a_clip_that_the_port_says_is_held_to_the_original_s_own():
    """Adam hides it: all gradients are twice as large."""

    def own(module, optimizer):
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()

    original, port = (
        Side(Net, lambda net, x: 99 * pattern_loss(net, x), step=step) for step in (own, Clip("norm", 1.0))
    )
    report = compare_sides(original, port, batches())
    assert report.failed == ("clip",)
    rows = {row.tensor: (row.passed, row.against) for row in report.rows if row.check == "clip"}
    assert rows == {
        "5 steps": (True, Against.REFERENCE),
        "norm_after": (False, Against.PROTOTYPE),
    }


def test_a_velocity_that_nobody_saves_is_found_by_resume():
    assert compare_sides(Side(Net, step=momentum), Side(Net, step=momentum), batches()).failed == ("resume",)


def traced():
    """A trace with a tensor of every kind."""
    trace = trace_side(Side(Net), batches())
    further = ("batch.x", "draw.anchors#0", "target_p", "path.0.0", "tap.labels#0", "step1.logits")
    trace.tensors.update({f"mb0.{name}": torch.ones(2) for name in further})
    trace.tensors[f"{SAMPLES}anchors.entries"] = torch.arange(400) % 4
    trace.tensors[f"{SAMPLES}anchors.sizes"] = torch.full((200,), 2)
    trace.curve = [
        replace(point, rows=9, correct=5, top=(5, 7), ties=(0, 1), logged={"kl": 1.0}) for point in trace.curve
    ]
    trace.prints = ["Loss: 0.5000"]
    return trace


def tensor(name):
    return lambda trace: trace.tensors.update({name: trace.tensors[name] + 1})


def point(**changes):
    def change(trace):
        trace.curve[3] = replace(trace.curve[3], **changes)

    return change


TRACED_FAULTS = {
    "another batch": ("batches", tensor("mb0.batch.x")),
    "another draw": ("draws", tensor("mb0.draw.anchors#0")),
    "other candidates": ("samplers", tensor(f"{SAMPLES}anchors.entries")),
    "other targets": ("targets", tensor("mb0.target_p")),
    "another tap": ("forward", tensor("mb0.tap.labels#0")),
    "other logits of a later step": ("forward", tensor("mb0.step1.logits")),
    "a path cut": ("cross_step_grad", lambda trace: trace.tensors.update({"mb0.path.0.0": torch.zeros(2)})),
    "no path": ("cross_step_grad", lambda trace: trace.tensors.pop("mb0.path.0.0")),
    "another norm": ("gradients", tensor("mb0.grad_norm")),
    "a tensor missing": ("forward", lambda trace: trace.tensors.pop("mb0.step1.logits")),
    "a tensor too many": ("forward", lambda trace: trace.tensors.update({"mb0.step2.logits": torch.ones(2)})),
    "more threads": ("environment", lambda trace: trace.environment.update(threads=2)),
    "another seed": ("configuration", lambda trace: trace.configuration.update(seed=1)),
    "one hit too many": ("hits", point(correct=6)),
    "one hit too many, no tie": ("hits", point(top=(6, 7))),
    "two hits too many, one tie": ("hits", point(top=(5, 9))),
    "a row too many": ("hits", point(rows=10)),
    "another printed line": ("hits", lambda trace: trace.prints.append("done")),
    "another printed number": ("hits", lambda trace: trace.prints.__setitem__(0, "Loss: 0.6000")),
    "another metric": ("curve", point(logged={"kl": 2.0})),
    "no metric": ("curve", point(logged={})),
    "another rate": ("curve", point(lr_after=0.5)),
    "a point less": ("curve", lambda trace: trace.curve.pop()),
    "a loss that is no number": ("curve", point(loss=float("nan"))),
    "another end": ("curve", tensor("final.up.bias")),
}


@pytest.mark.parametrize(("found", "plant"), TRACED_FAULTS.values(), ids=TRACED_FAULTS)
def test_the_fault_in_a_trace_is_found(found, plant):
    original, port = traced(), traced()
    plant(port)
    assert compare_traces(original, port).failed == (found,)


def logging(*places, value=1.0):
    """A series, and the gradient norm, with values at these points alone, the last of them given."""
    trace = traced()
    for n, point in enumerate(trace.curve):
        held = (value if n == places[-1] else 1.0) if n in places else None
        trace.curve[n] = replace(point, logged={} if held is None else {"kl": held}, grad_norm=held)
    return trace


@pytest.mark.parametrize(
    ("found", "detail"),
    [
        (logging(0, 2), ""),
        (logging(0, 2, value=2.0), ": expected 1.0, found 2.0"),
        (logging(0, 3), "found '2 points, no value at (2,)', expected '2 points, a value at (2,)'"),
    ],
    ids=["the same", "another value", "at another point"],
)
def test_a_series_is_compared_where_its_values_stand(found, detail):
    report = compare_traces(logging(0, 2), found, checks=["curve"])
    rows = {row.tensor: row for row in report.rows if row.tensor in ("kl", "grad_norm")}
    assert [(row.passed, detail in row.detail) for row in rows.values()] == [(not detail, True)] * 2


def test_what_a_near_tie_decides_and_the_last_printed_digit_may_fall_either_way():
    original, port = traced(), traced()
    point(top=(5, 8))(port)
    port.prints = ["Loss: 0.5001"]
    report = compare_traces(original, port)
    report.raise_if_failed()
    row = next(row for row in report.rows if row.tensor == "top_2")
    assert (row.measured, row.detail) == (0.0, "1 of 35 fall the other way, 5 are near ties")


def test_every_check_has_a_fault():
    named = {check for fault in FAULTS for check in fault.values[0]} | {check for check, _ in TRACED_FAULTS.values()}
    assert named | {"resume", "modules"} == {*CHECKS, "initialisation", "throughput"} - AUDITS


UNUSED = ("batches", "draws", "samplers", "targets", "modules", "cross_step_grad", "hits", "schedule")


def test_without_a_fault_every_check_has_rows_or_a_reason_and_passes():
    report = compare_sides(Side(changed(wasteful)), Side(Net), batches(), checks=(*CHECKS, "throughput"))
    report.raise_if_failed()
    assert [*dict.fromkeys(row.check for row in report.rows)] == [*CHECKS, "throughput"]
    unused = {row.check: row.detail for row in report.rows if row.status is Status.NOT_APPLICABLE}
    assert set(unused) == {*UNUSED} | AUDITS
    assert all(unused.values())
    against = {row.check: row.against for row in report.rows}
    assert {check for check, one in against.items() if one is Against.SELF_CONSISTENCY} == {
        "environment",
        "round_trip",
        "resume",
    }
    assert report.first is None
    assert report.speeds[0].ratio > 1.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision_is_held_to_what_its_own_rounding_does(dtype):
    """Also one that no table is for: a port whose matrix is one unit off passes, at twenty it does not."""
    given = [batch.to(dtype) for batch in batches()]

    def off(units):
        return Side(gives("", lambda out: out * (1 + units * torch.finfo(dtype).eps), dtype))

    assert compare_sides(off(0), off(1), given, checks=["forward"]).passed
    assert compare_sides(off(0), off(40), given, checks=["forward"]).failed == ("forward",)


GRAD = torch.ones(100).index_fill(0, torch.tensor([0]), 1e-8)
"""Rounding may turn the first entry's sign."""


@pytest.mark.parametrize(
    ("grad", "entries", "passed", "detail"),
    [
        (GRAD, [0], True, "1 of 100 entries set aside"),
        (GRAD, [0, 1], False, "at (1,)"),
        (GRAD, [], True, ""),
        (GRAD / 0, [0], False, "at (0,)"),
    ],
)
def test_entries_that_rounding_turns_are_set_aside(grad, entries, passed, detail):
    """Adam's first step is the rate times the gradient's sign."""
    start, right = torch.zeros(100), torch.full((100,), -1e-3)
    wrong = right.clone()
    wrong[entries] = 1e-3
    held = {"mb0.grad.w": grad.nan_to_num(posinf=1.0), "init.w": start}
    traces = [Trace(run, "one", "float32", {**held, "after.w": value}) for run, value in (("a", right), ("b", wrong))]
    traces[0].spread, traces[0].trained = {"grad.w": [1e-7], "after.w": [1e-7]}, ("w",)
    report = compare_traces(*traces, checks=["optimizer_step"])
    assert report.passed is passed
    assert detail in report.rows[0].detail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checks": ["speed"]}, "comparison: checks: found speed"),
        ({"tolerances": {"output": Tolerance(Kind.ABSOLUTE, 1.0, "")}}, "tolerances: found output"),
        ({"steps": 0}, "comparison: steps: found 0"),
        ({"batches": []}, "batches: found none"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        compare_sides(**{"original": Side(Net), "port": Side(Net), "batches": batches(), **changes})


class TiedHead(torch.nn.Module):
    """A head that is the embedding; the port's sums have another order, so that all it does is off by rounding."""

    def __init__(self, halves=False):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(16, 32), torch.nn.Linear(32, 16, bias=False)
        self.head.weight, self.halves = self.table.weight, halves

    def forward(self, ids):
        states, (low, high) = torch.tanh(self.table(ids)), self.head.weight.split(16, -1)
        if not self.halves:
            return self.head(states)
        self.head(states)
        return states[..., :16] @ low.T + states[..., 16:] @ high.T


def test_a_tied_weight_is_held_like_the_one_that_it_is():
    ids = torch.arange(16).view(2, 8)
    sides = [Side(lambda halves=halves: TiedHead(halves)) for halves in (False, True)]
    report = compare_sides(*sides, [ids])
    assert report.passed, report
    tied = [row for row in report.rows if row.tensor == "final.head.weight"]
    assert [row.bound for row in tied] == ["rounding"]
    assert tied[0].measured > 0


def by_hand(module, optimizer, rates):
    optimizer.param_groups[0]["lr"] = next(rates)
    optimizer.step()


def scheduled(factor, **options):
    """A rate of 1e-3 times a factor of the step, by a schedule or by hand as a step begins."""
    build = partial(torch.nn.Linear, 4, 4)
    if options.get("hand"):
        rates = (1e-3 * factor(n) for _ in count() for n in range(5))
        return Side(build, step=partial(by_hand, rates=rates))
    return Side(build, schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor))


def test_a_rate_set_by_hand_is_one_by_a_schedule():
    batches = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]
    sides = scheduled(lambda n: (n + 1) / 4, hand=True), scheduled(lambda n: (n + 1) / 4)
    chosen = ["configuration", "curve", "optimizer_step"]
    report = compare_sides(*sides, batches, checks=chosen)
    assert report.passed, report
    (row,) = [row for row in report.rows if row.tensor == "lr_after"]
    assert row.status is Status.SILENT
    assert (
        compare_sides(sides[0], scheduled(lambda n: (n + 1.01) / 4), batches, checks=chosen).failed[0]
        == "configuration"
    )
