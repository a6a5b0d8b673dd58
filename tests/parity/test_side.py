"""Defaults of a side: pretrained checkpoints, own losses, schedules and steps; commands; the names of the package."""

import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import parity
from parity import (
    Case,
    Clip,
    CommandSide,
    NameMap,
    Pair,
    Side,
    compare_sides,
    run_pair,
    trace_side,
    write_trace,
)
from parity.errors import InputError
from parity.rerun import move
from parity.run import CaseRun
from parity.setup import pattern_loss
from parity.step import global_norm
from parity.verdict import Status

TINY = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    attn_implementation="eager",
)
TOKENS = torch.arange(14).reshape(2, 7) % 40
IDS = {"input_ids": TOKENS, "labels": TOKENS}
ONES = [torch.ones(2, 3)]


def model(change=lambda whole: None):
    def build():
        whole = LlamaForCausalLM(LlamaConfig(**TINY.to_dict())).train()
        change(whole)
        return whole

    return Side(build)


def test_a_whole_language_model_with_its_own_loss_and_checkpoint():
    report = compare_sides(model(), model(), [IDS])
    report.raise_if_failed()
    assert 2.0 < trace_side(model(), [IDS], steps=1).curve[0].loss < 6.0  # cross entropy, not the distance to a pattern
    called = {row.tensor.partition("#")[0] for row in report.rows if row.check == "forward"}
    assert {"model.layers.1.self_attn.q_proj", "model.norm", "lm_head", "(whole)"} <= called


def louder(whole):
    whole.model.layers[1].mlp.up_proj.register_forward_hook(lambda part, args, out: out * 1.01)


def test_a_module_of_a_model_with_a_key_value_cache_is_named():
    first = compare_sides(model(), model(louder), [IDS], checks=["forward"]).first
    assert first.module == "model.layers.1.mlp.up_proj"


def test_checkpoints_go_through_save_pretrained(monkeypatch):
    original = LlamaForCausalLM.save_pretrained

    @torch.no_grad()
    def save(self, folder):
        self.model.norm.weight.mul_(2)
        original(self, folder)
        self.model.norm.weight.div_(2)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    report = compare_sides(model(), model(), [IDS], checks=["round_trip"])
    (row,) = report.rows
    assert (row.tensor, "also loss" in row.detail, row.passed) == ("model.norm.weight", True, False)


def test_a_round_trip_says_which_parts_open_with_another_attention(monkeypatch):
    read = LlamaForCausalLM.from_pretrained

    def opened(folder):
        found = read(folder)
        last = found.model.layers[1].self_attn
        last.config = deepcopy(last.config)
        last.config._attn_implementation = "eager"
        return found

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", opened)
    report = compare_sides(model(), model(), [IDS], checks=["round_trip"])
    (row,) = [row for row in report.rows if not row.passed]
    assert "found ['eager', 'sdpa'] in model.layers.1.self_attn, expected ['sdpa']" in row.detail


@pytest.mark.parametrize(("clip", "moved"), [(Clip("value", 1e-3), 1e-3), (Clip("norm", 2e-3), 2e-3), (None, 0.5)])
def test_a_step_clips_as_the_side_says(clip, moved):
    side = Side(lambda: nn.Linear(3, 3), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    side = replace(side, step=clip) if clip else side
    trace = trace_side(side, ONES, steps=1)
    change = trace.tensors["after.weight"] - trace.tensors["init.weight"], trace.tensors["after.bias"]
    size = change[0].abs().max() if clip and clip.kind == "value" else global_norm(trace.group("mb0.grad.").values())
    if clip and clip.kind == "norm":
        size = global_norm([change[0], change[1] - trace.tensors["init.bias"]])
    assert float(size) == pytest.approx(moved, rel=1e-3) if clip else float(size) > 1e-2
    compare_sides(side, side, ONES).raise_if_failed()


def test_another_step_is_not_held_to_the_clip_of_the_one_before():
    side = Side(lambda: nn.Linear(3, 3), step=Clip("norm", 1e-3))
    for other in (replace(side, step=Side.step), replace(side, step=Clip("norm", 2.0))):
        trace = trace_side(other, ONES, steps=1)
        assert trace.configuration.get("clip") == (
            {"kind": "norm", "limit": 2.0} if other.step is not Side.step else None
        )
        assert trace.audits[0].norm_after == trace.audits[0].norm_before > 1e-2
    assert trace_side(replace(side, name="same"), ONES, steps=1).configuration["clip"]["limit"] == 1e-3


class Answers(nn.Linear):
    """As Speculators' models answer."""

    def forward(self, x):
        found = super().forward(x).square().sum()
        return None, found, {"loss_sum": found.detach()}


class Counted(Answers):
    """Rows and their count before the loss, as no side's pattern would have it."""

    def forward(self, x):
        return x, torch.tensor(len(x)), super().forward(x)[1]


def test_a_reopened_module_s_loss_is_the_run_s():
    found = []

    def kept(module, batch):
        found.append((pattern_loss(module, batch), module(batch)[2]))
        return found[-1][0]

    compare_sides(*[Side(lambda: Counted(3, 3), loss=kept)] * 2, ONES, checks=["round_trip"]).raise_if_failed()
    assert len(found) > 2
    assert all(torch.equal(*pair) for pair in found)


def test_a_side_that_is_only_run_forward_has_the_loss_of_a_tuple_too():
    trace = trace_side(Side(lambda: Answers(3, 3), backward=False), ONES, steps=1)
    assert trace.tensors["mb0.loss"] == trace.tensors["mb0.call.(whole)#0.out.1"] > 0


class Borrowed(nn.Module):
    """Its head belongs to a verifier: left NaN until loaded, and in no checkpoint."""

    def __init__(self, frozen=True):
        super().__init__()
        self.up, self.head = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        nn.init.constant_(self.head.weight, torch.nan).requires_grad_(not frozen)

    def forward(self, x):
        return self.head(self.up(x))


def save_up(module, folder):
    torch.save(module.up.state_dict(), folder / "up.pt")


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_and_opens_as_nan_is_given_again(frozen):
    """What is trained is not: the planted fault is a head that nothing draws and no checkpoint holds."""

    def load(folder):
        module = Borrowed(frozen)
        module.up.load_state_dict(torch.load(folder / "up.pt", weights_only=True))
        return module

    def build():
        module = Borrowed(frozen)
        nn.init.normal_(module.head.weight)
        return module

    original, port = Side(build), Side(lambda: Borrowed(frozen), save=save_up, load=load)
    pair = Pair("borrowed", original, port, [Case("one", ONES)], asked=["initialisation"])
    report = run_pair(pair)
    assert report.failed == (() if frozen else ("round_trip", "initialisation"))
    drawn = {row.tensor for row in report.rows if row.check == "initialisation"}
    assert drawn == {"up.weight", "up.bias"} | (set() if frozen else {"head.weight"})


def warming(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: n / 9)


@pytest.mark.parametrize("options", [{"backward": False}, {"schedule": warming}], ids=["only run forward", "at rate 0"])
@pytest.mark.parametrize(("check", "steps"), [("round_trip", 1), ("resume", 2)])
def test_a_checkpoint_that_is_never_written_is_found(options, check, steps):
    """The build has the weights that the side stops with."""
    side = Side(Net, save=lambda module, folder: None, load=lambda folder: Net(), **options)
    assert compare_sides(side, side, ONES, checks=[check], steps=steps).failed == (check,)


def test_what_is_saved_is_moved():
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in "abc"})
    module["b"].weight = module["a"].weight
    module["c"].requires_grad_(False)
    nn.init.zeros_(module["a"].bias)
    for name, value in {"mean": torch.ones(2), "count": torch.ones(2).long()}.items():
        module.register_buffer(name, value)
    module.register_buffer("table", torch.ones(2), persistent=False)
    before = {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
    move(module)
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stays = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert stays == {"c.weight", "c.bias", "count", "table"}
    assert bool((after["a.bias"] == 2**-6).all())
    assert torch.equal(after["a.weight"], before["a.weight"] * (1 + 2**-6))
    assert module["b"].weight is module["a"].weight


def noisy():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))


def test_seeds_are_the_same_on_both_sides_and_after_a_resume():
    batches = [torch.ones(2, 8), torch.zeros(2, 8)]
    compare_sides(Side(noisy), Side(noisy), batches, seed=3).raise_if_failed()
    losses = [trace_side(Side(noisy), batches, seed=seed, steps=1).curve[0].loss for seed in (3, 4)]
    assert losses[0] != losses[1]


def test_a_side_that_is_only_run_forward_is_saved_and_resumed():
    side = Side(noisy, backward=False)
    report = compare_sides(side, side, [torch.ones(2, 8)], checks=["forward", "curve", "round_trip", "resume"])
    report.raise_if_failed()
    assert {row.check for row in report.rows if row.compared} == {"forward", "curve", "round_trip", "resume"}


def test_the_package_has_no_other_names_and_does_not_import_torch():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        parity.nothing  # noqa: B018
    assert {*parity.__all__} == {name for name in dir(parity) if name in parity.HOME and hasattr(parity, name)}
    code = "import sys, parity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


class Net(nn.Linear):
    def __init__(self, bias=0.5):
        super().__init__(3, 3)
        self.weight.data.copy_(torch.eye(3))
        self.bias.data.fill_(bias)


@pytest.fixture
def command(tmp_path):
    """Leaves the trace of a net with another bias."""
    kept = write_trace(trace_side(Side(lambda: Net(0.25)), ONES), tmp_path / "kept")
    return CommandSide(["cp", "-r", str(kept), "{out}"], name="elsewhere")


def test_a_command_is_an_original_whose_weights_go_to_the_port(command, tmp_path):
    report = compare_sides(command, Side(Net, name="mine"), ONES)
    report.raise_if_failed()
    assert report.baseline == "elsewhere"
    report.write_html(tmp_path / "report.html")
    report.write_json(tmp_path / "report.json")
    assert "mine" in (tmp_path / "report.html").read_text()
    assert '"passed": true' in (tmp_path / "report.json").read_text()
    assert {row.check for row in report.rows if row.passed} >= {"forward", "curve", "round_trip", "resume"}
    assert {row.status for row in report.rows if row.check == "weights"} == {Status.GIVEN}
    assert compare_sides(command, Side(Net), ONES, copy_weights=False).failed == ("weights",)


class Renamed(nn.Linear):
    """A weight of another name, and one that the original lacks."""

    def __init__(self):
        super().__init__(3, 3)
        self.twin, self.extra = self.weight, nn.Parameter(torch.zeros(3))
        del self.weight

    def forward(self, x):
        return nn.functional.linear(x, self.twin, self.bias) + self.extra


def test_weights_of_a_case_do_not_switch_copying_off():
    """They are by each side's own names; the port's start is the original's, and its own where that has none."""
    weights = {"weight": torch.eye(3), "extra": torch.ones(3)}
    names = NameMap({"weight": "twin"}, only_port=["extra"])
    pair = Pair(
        "named", Side(lambda: nn.Linear(3, 3)), Side(Renamed, name="port"), [Case("one", ONES, 0, 2, weights)], names
    )
    with CaseRun(pair, pair.find_cases(None)[0]) as run:
        held = run.evidence(pair.port)
    found = held.found.group("init.")
    assert torch.equal(found["twin"], torch.eye(3))
    assert torch.equal(found["bias"], held.expected.tensors["init.bias"])
    assert torch.equal(found["extra"], torch.ones(3))


def test_a_command_as_the_port_is_compared_as_far_as_its_trace_goes(command):
    report = compare_sides(Side(Net), command, ONES)
    assert report.failed == ("weights",)
    reasons = {row.check: row.detail for row in report.rows if row.status is Status.NOT_APPLICABLE}
    assert reasons["round_trip"] == reasons["resume"] == "a trace leaves nothing to run again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["python"], "python: words: found"),
        (["/no/such/program", "{out}"], "/no/such/program: command: found"),
        (["true", "{out}"], "trace: found no such folder"),
    ],
)
def test_a_command_that_cannot_be_is_refused(words, message):
    with pytest.raises(InputError) as refused:
        compare_sides(CommandSide(words), Side(Net), ONES)
    assert message in str(refused.value)


def test_a_list_of_optimizers_is_refused():
    side = Side(Net, optimizer=lambda parameters: [torch.optim.SGD([one], lr=0.1) for one in parameters])
    with pytest.raises(InputError, match=r"side: optimizer: found a list of 2, expected one object with `step`"):
        compare_sides(Side(Net), side, ONES)


def no_room(module, folder):
    raise RuntimeError("no room")


class Wrong(Net):
    def forward(self, x):
        return nn.functional.linear(x, torch.ones(2, 5))


def test_an_exception_in_an_installed_package_is_placed_there():
    beyond = {"input_ids": TOKENS + TINY.vocab_size}
    (row,) = compare_sides(model(), model(), [beyond]).rows
    assert re.search(r"^IndexError: index out of range in self at transformers/\S+\.py:\d+$", row.detail)


@pytest.mark.parametrize(
    ("side", "check", "detail"),
    [
        (Side(Wrong), "run", "and 5x2) at tests/parity/test_side.py:"),
        (CommandSide(["sh", "-c", "echo no room >&2; exit 3", "{out}"]), "run", "sh ended with exit code 3: no room"),
        (
            CommandSide(["sh", "-c", "echo KeyError: fc >&2; seq 400 >&2; exit 1", "{out}"]),
            "run",
            "sh ended with exit code 1: KeyError: fc",
        ),
        (CommandSide(["sh", "-c", "sleep 60", "{out}"], timeout=0.1), "run", "within 0.1 s: nothing on its standard"),
        (Side(Net, save=no_room), "round_trip", "RuntimeError: no room at tests/parity/test_side.py:"),
        (Side(Net, loss=lambda module, batch: module(batch)), "run", "must be one number, found shape (2, 3)"),
    ],
)
def test_a_side_that_fails_is_a_failed_row(side, check, detail):
    report = compare_sides(Side(Net), side, ONES)
    assert report.failed == (check,)
    assert detail in next(row.detail for row in report.rows if row.status is Status.FAILED)
