"""Faults planted in running ports: which check sees each, what no check sees, and where none can be planted."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import parity.power
from parity import Case, Clip, CommandSide, KnownDifference, Pair, Side, replace_functions
from parity.faults import GENERIC
from parity.plants import Fault, Ground, patched
from parity.power import run_with_power
from parity.verdict import Sight
from tests.parity import example


class Net(nn.Module):
    """Two layers, a buffer, and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))
        self.down.bias.requires_grad_(False)

    def forward(self, x, mask):
        """[B, 3] -> [B, 3]."""
        return self.up(self.down(x)) * self.scale * mask[:, None]


def distance(x):
    """What a known difference stands in for."""
    return x.square().mean() * factor()


def factor():
    """A number of Python's."""
    return 1.0


def loss(net, batch):
    return distance(net(**batch))


def batches():
    draw = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(4, 3, generator=draw), "mask": torch.tensor([1.0, 0, 1, 1])} for _ in range(2)]


def falling(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)


SIDE = Side(Net, loss, schedule=falling, step=Clip("norm", 0.01), name="net")
PAIR = Pair("toy", SIDE, replace(SIDE, name="port"), [Case("toy", batches())], batch_keys={"mask": "mask"})


def sights(pair):
    return {one.fault: one for one in run_with_power(pair).planted}


def test_every_fault_of_any_port_is_seen_by_a_check():
    """And names the check and how far beyond its bound it is; what is not planted says what is missing."""
    found = sights(PAIR)
    named = {one.fault: one.check for one in found.values() if one.sight is Sight.SEEN}
    assert {*found} - {*named} == {"a norm's eps times 10"}
    assert found["a norm's eps times 10"].detail == "no module has an eps"
    assert {name: named[name] for name in EXPECTED} == EXPECTED
    assert all(one.place and (one.beyond is None or one.beyond > 1) for one in found.values() if one.fault in named)


EXPECTED = {
    "matmul precision lowered": "environment",
    "rate times 1.01": "configuration",
    "weight decay off or on": "configuration",
    "clip times 1.02": "clip",
    "schedule a step late": "curve",
    "a step skipped": "optimizer_step",
    "the update's sign": "optimizer_step",
    "one gradient times 1.01": "gradients",
    "one module's output times 1.001": "forward",
    "buffer scale changed": "forward",
    "one token more in the loss": "forward",
    "a saved tensor changed": "round_trip",
    "the optimizer not resumed": "resume",
}


@contextmanager
def nothing(ground, size):
    ground.place = "nowhere"
    yield


@pytest.fixture
def alone(monkeypatch):
    """No faults but the pair's own."""
    monkeypatch.setattr(parity.power, "GENERIC", ())
    monkeypatch.setattr(parity.power, "BUFFERS", 0)


@pytest.mark.usefixtures("alone")
def test_what_no_check_sees_fails_a_pair_that_asks_for_it():
    pair = replace(PAIR, batch_keys={}, faults=[Fault("none at all", nothing)])
    assert run_with_power(pair).passed
    report = run_with_power(replace(pair, unseen={}))
    assert (report.passed, report.planted[0].sight, report.planted[0].fails) == (False, Sight.UNSEEN, True)
    excused = run_with_power(replace(pair, unseen={"none at all": "it is none"}))
    assert (excused.passed, excused.planted[0].detail) == (True, "it is none")
    assert "it is none" in str(excused)
    heading = "Planted, seen by no check, and not excused by Pair.unseen (1)"
    assert [heading in str(one) for one in (report, excused)] == [True, False]


@pytest.mark.usefixtures("alone")
def test_a_fault_too_small_to_be_seen_says_from_which_size_on_it_is():
    def times(ground, size):
        return patched(sys.modules[__name__], "distance", lambda real: lambda x: real(x) * size)(ground, size)

    (one,) = sights(replace(PAIR, batch_keys={}, faults=[Fault("scaled", times, (1 + 1e-9, 1.5))])).values()
    assert (one.sight, one.size, one.check) == (Sight.BELOW, 1.5, "loss")


class Says(nn.Module):
    """Ids [B, S] to a cross entropy with labels [B, S], each predicted by the token before it, as GPT-2's."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids, labels):
        return nn.functional.cross_entropy(self.head(self.embed(ids))[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


LABELS = {
    "a prompt": ([[-100, -100, 3, 4]], "seen"),
    "padding": ([[-100, 2, 3, -100], [1, 2, 3, 4]], "seen"),
    "only the first": ([[-100, 2, 3, 4]], "not plantable"),
    "none": ([[1, 2, 3, 4]], "not plantable"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("labels", "sight"), LABELS.values(), ids=LABELS)
def test_where_labels_are_the_mask_one_token_more_is_a_label_more(labels, sight):
    labels = torch.tensor(labels)
    batch = {"ids": torch.arange(labels.numel()).view_as(labels) % 7, "labels": labels}
    port = Side(Says, name="port")
    pair = Pair("says", Side(Says), port, [Case("says", [batch])], batch_keys={"labels": "labels"})
    more = sights(pair)["one token more in the loss"]
    assert more.sight.value == sight
    assert sight == "seen" or more.detail == "no batch has labels of -100 beside others"
    assert (labels == batch["labels"]).all()


STANDS_IN = {f"{__name__}:distance": lambda real, x: x.square().mean()}
ASKS = {f"{__name__}:distance": lambda real, x: real(x)}
OF_A_NUMBER = {f"{__name__}:factor": lambda real: real()}
REPLACED = [(STANDS_IN, Sight.UNSEEN), (ASKS, Sight.SEEN), (OF_A_NUMBER, Sight.SEEN)]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("functions", "sight"), REPLACED)
def test_a_fault_inside_of_what_a_cause_replaces_is_said_to_be_unseen(functions, sight, monkeypatch):
    """It passes: the known difference is judged by what it leaves, so the report says what is held by nothing."""
    pair = replace(
        PAIR,
        batch_keys={},
        known_differences=[KnownDifference("mean", "squares, averaged", replace_functions(functions))],
    )
    report = run_with_power(pair)
    assert [(one.fault, one.sight) for one in report.planted] == [
        (f"inside {next(iter(functions)).rpartition(':')[2]}, under known difference mean", sight)
    ]
    said = (
        f"known difference mean stands in for {__name__}:distance without calling it: no check holds what that computes"
    )
    assert (said in report.notes) is (sight is Sight.UNSEEN)


@pytest.mark.usefixtures("alone")
def test_a_fault_inside_of_what_a_cause_puts_aside_is_unseen():
    own = KnownDifference("schedule", "falls", lambda side: replace(side, schedule=lambda x: falling(x)))
    (one,) = sights(replace(PAIR, batch_keys={}, known_differences=[own])).values()
    assert (one.fault, one.sight) == ("inside the port's schedule, under known difference schedule", Sight.UNSEEN)


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        (CommandSide(["python", "{out}"], "away"), "not plantable: away does not run in this process"),
        (replace(SIDE, loss=lambda net, batch: 1.1 * loss(net, batch), name="port"), "without a fault loss fails"),
    ],
    ids=["a command", "a port that fails"],
)
def test_where_nothing_can_be_planted_the_report_says_why(port, reason):
    (skip,) = run_with_power(replace(PAIR, port=port)).skips
    assert skip.reason.startswith(reason)


@pytest.mark.usefixtures("alone")
def test_the_command_line_shows_what_was_seen(command, tmp_path, capsys):
    places = ["--json", tmp_path / "report.json", "--report", tmp_path / "report.html"]
    assert command("run", f"{example.FILE}:PAIR", "--power", *places) == 0
    assert "Planted" not in capsys.readouterr().out  # none was
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity.power, "GENERIC", [Fault("none at all", nothing)])
        assert command("run", f"{example.FILE}:PAIR", "--power", *places) == 0
    assert "none at all" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["planted"][0]["sight"] == "unseen"
    assert "Planted faults" in (tmp_path / "report.html").read_text()


def clipped_by_its_own_norm(parameter):
    """As accelerate does since 1.16."""
    norm = nn.utils.get_total_norm([parameter.grad])
    nn.utils.clip_grads_with_norm_(parameter, 1.0, norm)


@pytest.mark.parametrize("clip", [partial(nn.utils.clip_grad_norm_, max_norm=1.0), clipped_by_its_own_norm])
def test_clipping_by_norm_is_planted_whoever_takes_the_norm(clip):
    fault = next(fault for fault in GENERIC if fault.name == "clip at a thousandth")
    ground, parameter = Ground(), nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    with fault.plant(ground, 1e-3):
        clip(parameter)
    assert ground.place == "norm at 1"
    assert parameter.grad.norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_a_fault_that_is_planted_in_nothing_is_refused_at_once():
    """A run would fail by it, and that would pass for a fault that was seen."""
    with pytest.raises(AttributeError, match="gone"):
        patched(sys.modules[__name__], "gone", lambda real: real)
