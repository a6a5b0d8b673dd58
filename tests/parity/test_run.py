"""Pairs of strangers run, traced, recorded and held against their recordings; traces written elsewhere are compared."""

import json
import shutil
import sys
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from parity import fixtures
from parity.comparing import TRACED
from parity.environment import describe
from parity.errors import InputError
from parity.pair import find_pair
from parity.report.page import flows
from parity.run import Runner, run_pair
from parity.side import trace_case
from parity.trace import read_trace

pytest_plugins = ["pytester"]

TOY = """
import torch
from pathlib import Path
from torch import nn
from dataclasses import replace
from parity import Case, KnownDifference, Clip, Draw, FolderSide, Pair, Side
from parity.compare import RowKey
from parity.setup import pattern_loss
from parity.verdict import Report

class Part(nn.Linear):
    calls, factor = 0, 1.0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (self.factor if self.calls % 2 == 0 else 1.0)

class Net(nn.Module):
    def __init__(self, factor=1.0, fails=False, name="up", nan=False):
        super().__init__()
        self.add_module(name, nn.Linear(3, 3))
        getattr(self, name).weight.data.add_(float("nan") if nan else 0.0)
        self.down = Part(3, 3)
        self.down.factor, self.fails, self.name = factor, fails, name

    def forward(self, x):
        if self.fails and len(x) == 2:
            raise RuntimeError("not written yet")
        up = getattr(self, self.name)
        return self.down(up(self.down(up(x))))

class Dead(Net):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)

class Twice(nn.Module):
    def forward(self, x):
        return x * 2 > x

class Wrapper:
    clipped = 0.01

    def __init__(self, model):
        self.model, self.held = model, [torch.optim.AdamW(model.parameters(), lr=0.1)]

    def step(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clipped)
        self.held[0].step()
        self.held[0].zero_grad()

class Saved(Wrapper):
    def state_dict(self):
        return {"held": self.held[0].state_dict()}

    def load_state_dict(self, state):
        self.held[0].load_state_dict(state["held"])

class Loose(Saved):
    clipped = 1e9

def pick(length):
    return torch.randperm(length)[:2]

def choose(length):
    return torch.randperm(length).flip(0)[None, :2]

def half_loss(module, batch):
    return pattern_loss(module, batch.bfloat16())

CASES = [Case("one", [torch.ones(2, 3)]), Case("two", [torch.ones(4, 3)], steps=2)]
PAPER, MINE = Side(Net, name="paper"), Side(Net, name="mine")
PAIR = Pair("toy", PAPER, MINE, CASES)
LOUD = Pair("loud", PAPER, Side(lambda: Net(1.1), name="mine"), CASES)
MUTE = replace(LOUD, hint=lambda row, evidence: 1 / 0)
DEAD = Pair("dead", Side(Dead, name="paper"), Side(Dead, name="mine"), CASES[:1])
BROKEN = Pair("broken", PAPER, Side(lambda: Net(fails=True), name="mine"), CASES)
MENDS = [KnownDifference("whole", "is written", lambda side: replace(side, build=Net))]
HIDDEN = Pair("hidden", PAPER, BROKEN.port, CASES, known_differences=MENDS)
MEANT = replace(HIDDEN, known_differences=[replace(MENDS[0], raises="RuntimeError: not written yet")])
RENAMED = Pair("renamed", PAPER, Side(lambda: Net(name="top"), name="mine"), CASES, {"up": "top"})
HALF = Pair("half", PAPER, Side(lambda: Net().bfloat16(), half_loss, name="mine"), CASES)
LIVE = Pair("live", FolderSide(Path(__file__).parent / "kept", "kept"), MINE, CASES, live=lambda root: PAPER)
NEEDY = Pair("needy", None, MINE, CASES, live=lambda root: PAPER, remedy="git clone it")
NAN = Pair("nan", PAPER, Side(lambda: Net(nan=True), name="mine"), CASES[:1], copy_weights=False)
SAMPLER = Pair("sampler", Side(Twice), Side(Twice, name="mine"), CASES)
CLIP = Clip("norm", 0.01)
STEPPED = Side(Net, optimizer=Saved, name="paper")
WRAPPED = Pair("wrapped", STEPPED, Side(Net, optimizer=Saved, clip=CLIP, name="mine"), CASES)
LOOSE = Pair("loose", STEPPED, Side(Net, optimizer=Loose, clip=CLIP, name="mine"), CASES[:1])
STATELESS = Pair("stateless", PAPER, Side(Net, optimizer=Wrapper, name="mine"), CASES)
DRAWN = Pair(
    "drawn",
    Side(Net, lambda net, x: pattern_loss(net, x[pick(len(x))])),
    Side(Net, lambda net, x: pattern_loss(net, x[choose(len(x))[0]]), name="mine"),
    [Case("one", [torch.arange(15.0).reshape(5, 3).sin()])],
    draws=[Draw("anchors", "toy_pairs:pick", "toy_pairs:choose", given=lambda drawn: drawn[None])],
)
REASONS = Pair("reasons", PAPER, MINE, CASES[:1], not_applicable={"resume": "no state"})
LAZY = Pair("lazy", PAPER, MINE, lambda: CASES)
TIMED = RowKey("throughput", "lap", "mine").row("throughput", "", 1.0, 1.1, True)
UNTIMED = RowKey("throughput", "lap", "mine").inapplicable("no baseline")
RACED = Pair("raced", PAPER, MINE, CASES[:1], jobs={"lap": lambda options: Report(rows=[TIMED, UNTIMED])})
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "toy_pairs", raising=False)
    (tmp_path / "toy_pairs.py").write_text(TOY)
    return tmp_path / "toy_pairs.py"


@pytest.fixture
def traced(toy, command, tmp_path, capsys):
    """The toy's port, traced by the command."""
    assert command("trace", f"{toy}:PAIR", tmp_path / "traced") == 0
    capsys.readouterr()
    return tmp_path / "traced"


def rows_of(file):
    return json.loads(file.read_text())["rows"]


def test_the_ports_compute_what_they_did_under_an_older_speculators(command, tmp_path, capsys):
    assert read_trace(fixtures.TRACES / "hass_fp32_k1").environment["speculators"] == "0.8.1"
    assert command("trace", "all", tmp_path, "-k", "k1") == 0
    code = command("compare", fixtures.TRACES, tmp_path)
    out = capsys.readouterr().out
    assert code == 0, out
    now = describe()
    for name, then in (("speculators", "0.8.1"), ("transformers", "5.16.1")):
        assert (f"{name}: {then} on the original's side, {now[name]} on the port's" in out) == (then != now[name])


def test_a_trace_equals_itself(traced, command, tmp_path):
    words = ("--report", tmp_path / "page.html", "--json", tmp_path / "rows.json")
    assert command("compare", traced, traced, *words) == 0
    rows = rows_of(tmp_path / "rows.json")
    assert {row["case"] for row in rows} == {"one", "two"}
    assert {row["check"] for row in rows} == set(TRACED)
    assert all(not row["measured"] for row in rows if row["check"] != "gradient_flow" and row["against"] == "prototype")
    assert "two" in (tmp_path / "page.html").read_text()


LOOSE = {"kind": "OF_MAX", "bound": 9.0, "reason": "coarse on purpose"}
FILES = {
    "names.json": {"up": "top"},
    "loose.json": dict.fromkeys(("out", "loss", "grad", "grad_norm", "after_step1", "final", "curve"), LOOSE),
}


@pytest.mark.parametrize(
    ("other", "words", "code", "said"),
    [
        ("LOUD", [], 1, "first: forward first goes wrong in down, call 1: at ("),
        ("LOUD", ["--checks", "weights,schedule"], 0, "PASS"),
        ("LOUD", ["--tolerances", "loose.json"], 0, "PASS"),
        ("RENAMED", [], 1, "FAIL"),
        ("RENAMED", ["--names", "names.json"], 0, "PASS"),
        ("HALF", [], 1, "weights first goes wrong in down: init.down.bias"),
    ],
)
def test_traces_are_compared(other, words, code, said, toy, traced, command, capsys):
    root = toy.parent
    for name, content in FILES.items():
        (root / name).write_text(json.dumps(content))
    assert command("trace", f"{toy}:{other}", root / "other") == 0
    words = [str(root / word) if word in FILES else word for word in words]
    assert command("compare", traced, root / "other", *words) == code
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_missing_case_fails(traced, command, tmp_path, capsys):
    shutil.copytree(traced / "one", tmp_path / "fewer" / "one")
    assert command("compare", traced, tmp_path / "fewer") == 1
    assert "missing in" in capsys.readouterr().out


COMPARE = ["compare", "{traced}", "{traced}"]


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["compare", "/no/where", "/no/where"], "", "/no/where: trace.json: found missing, expected a trace"),
        (["compare", "{traced}", "{traced}/one"], "", "one trace, as in the other folder"),
        ([*COMPARE, "--checks", "speed"], "", "--checks: found speed"),
        ([*COMPARE, "--names", "{file}"], '{"a": 1}', "file.json: a: found 1"),
        ([*COMPARE, "--tolerances", "{file}"], '{"out": 1}', "file.json: out: found 1, expected Input should be"),
        (["run", "{toy}:NOTHING"], "", "NOTHING: found nothing of that name, expected a parity.Pair"),
        (["run", "{toy}:CASES"], "", "CASES: found list, expected a parity.Pair"),
        (["run", "{toy}"], "", "toy_pairs.py, expected eagle3, hass or FILE.py:NAME"),
        (["run", "nowhere.py:PAIR"], "", "nowhere.py: PAIR: found no such file, expected FILE.py:NAME"),
        (["run", "no.module:PAIR"], "", "PAIR: found no.module, expected a file or a module"),
        (["run", "{toy}:NEEDY"], "", "--original: found nothing, expected a checkout. git clone it"),
        (["run", "{toy}:PAIR", "--original", "{tmp}"], "", "expected nothing: toy runs without a checkout"),
        (["run", "{toy}:LAZY", "--recordings", "{tmp}/no"], "", "no/one: trace: found no such folder"),
    ],
)
def test_bad_input_exits_with_two(words, content, message, toy, traced, command, capsys):
    file = toy.with_name("file.json")
    file.write_text(content)
    for mark, place in {"{tmp}": toy.parent, "{traced}": traced, "{file}": file, "{toy}": toy}.items():
        *words, message = [word.replace(mark, str(place)) for word in (*words, message)]
    assert command(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "code", "failed"),
    [
        ("PAIR", [], 0, set()),
        ("RENAMED", [], 0, set()),
        ("PAIR", ["-k", "two", "--checks", "loss, forward"], 0, set()),
        ("PAIR", ["-k", "three"], 1, set()),
        ("LOUD", [], 1, {("one", "forward"), ("two", "forward")}),
        ("BROKEN", [], 1, {("one", "run")}),
        ("HIDDEN", [], 1, {("one", "run")}),
        ("MEANT", [], 0, set()),
        ("REASONS", [], 0, set()),
        ("NAN", [], 1, {("one", "weights")}),
        ("SAMPLER", [], 0, set()),
        ("WRAPPED", [], 0, set()),
        ("LOOSE", [], 1, {("one", "clip")}),
        ("STATELESS", ["--checks", "resume,round_trip"], 0, set()),
        ("DRAWN", [], 0, set()),
        ("LAZY", [], 0, set()),
    ],
)
def test_a_stranger_s_pair_is_run(name, words, code, failed, toy, command, tmp_path):
    assert command("run", f"{toy}:{name}", *words, "--json", tmp_path / "rows.json") == code
    rows = rows_of(tmp_path / "rows.json")
    assert {(row["case"], row["check"]) for row in rows if row["status"] == "failed"} == failed
    if "-k" in words and code == 0:
        assert {(row["case"], row["check"]) for row in rows} == {("two", "forward"), ("two", "loss")}
    if name == "BROKEN":  # the other case runs
        assert {row["check"] for row in rows if row["case"] == "two" and row["passed"]} >= {"forward", "curve"}
    if name == "REASONS":
        (row,) = (row for row in rows if row["check"] == "resume")
        assert (row["status"], row["detail"], row["against"]) == ("not applicable", "no state", "self_consistency")


SPOILED = {
    "import torch\n\nPAIR = torch.nn.Nothing()\n": "AttributeError: module 'torch.nn' has no attribute 'Nothing'",
    "\n\nPAIR = = 1\n": "SyntaxError: invalid syntax",
}


@pytest.mark.parametrize("text", SPOILED)
def test_a_file_that_cannot_be_imported_is_one_line(text, command, tmp_path, capsys):
    file = tmp_path / "spoiled.py"
    file.write_text(text)
    assert command("run", f"{file}:PAIR") == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"error: {file}: PAIR: found {SPOILED[text]}")
    assert complaint.endswith(f"{file}:3, expected a file or a module that can be imported\n")
    assert complaint.count("\n") == 1


def test_a_recorded_original_stands_for_it(toy, command, tmp_path):
    kept = ("--recordings", tmp_path / "kept")
    assert command("record", f"{toy}:PAIR", "--output", tmp_path / "kept") == 0
    assert command("run", f"{toy}:LIVE", "--json", tmp_path / "rows.json") == 0
    against = {row["against"] for row in rows_of(tmp_path / "rows.json") if row["passed"]}
    assert against == {"prototype", "reference", "self_consistency"}
    assert [command("run", f"{toy}:{name}", *kept) for name in ("LOUD", "PAIR", "LAZY")] == [1, 0, 0]
    (tmp_path / "kept" / "one" / "trace.json").unlink()
    assert [command("run", f"{toy}:{name}", *kept, "-k", "one") for name in ("PAIR", "LAZY")] == [2, 2]
    assert command("run", f"{toy}:NEEDY", "--original", tmp_path, "-k", "two") == 0
    assert command("record", f"{toy}:DRAWN", "--output", tmp_path / "drawn") == 0
    assert len(read_trace(tmp_path / "drawn" / "one").group("mb0.draw.")) == 5
    assert command("run", f"{toy}:DRAWN", "--recordings", tmp_path / "drawn") == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {"loss", "throughput"}),
        (["--checks", "loss"], {"loss"}),
        (["--checks", "lap"], {"throughput"}),
        (["--checks", "loss,lap"], {"loss", "throughput"}),
        (["--checks", "loss,lap", "-k", "one"], {"loss"}),
    ],
)
def test_a_job_runs_where_it_is_named_or_nothing_is(words, found, toy, command, tmp_path):
    assert command("run", f"{toy}:RACED", *words, "--json", tmp_path / "rows.json") == 0
    assert {row["check"] for row in rows_of(tmp_path / "rows.json")} & {"loss", "throughput"} == found


def test_a_pair_becomes_test_items(toy, pytester, monkeypatch):
    lean = [word for name in ("cacheprovider", "hypothesispytest", "xdist") for word in ("-p", f"no:{name}")]
    result = pytester.runpytest_inprocess("--pair", f"{toy}:PAIR", "-rs", *lean)
    checks = {check.name for check in find_pair(f"{toy}:PAIR").every_check} - {"initialisation", "throughput"}
    unused = {"batches", "draws", "samplers", "targets", "modules", "cross_step_grad", "hits", "schedule"}
    result.assert_outcomes(passed=2 * len(checks - unused), skipped=2 * len(unused))
    result.stdout.fnmatch_lines(
        [
            "PASS: 2 cases; * quantities of the prototype matched, *",
            "SKIPPED*neither side draws anything that has a name",
        ]
    )
    broken = pytester.runpytest_inprocess("--pair", f"{toy}:BROKEN", "-k", "one", "-rs", *lean)
    broken.assert_outcomes(failed=1, skipped=len(checks) - 1, deselected=len(checks))
    broken.stdout.fnmatch_lines(["*RuntimeError: not written yet", "SKIPPED*the side did not run: RuntimeError"])
    hidden, meant = (
        pytester.runpytest_inprocess("--pair", f"{toy}:{name}", "-k", "as_it_is", *lean) for name in ("HIDDEN", "MEANT")
    )
    hidden.assert_outcomes(failed=1, passed=1, deselected=2 * len(checks))
    hidden.stdout.fnmatch_lines(["as it is: * the port as it is raises RuntimeError: not written yet at *"])
    meant.assert_outcomes(passed=2, deselected=2 * len(checks))
    loud = pytester.runpytest_inprocess("--pair", f"{toy}:LOUD", "-k", "two-mine-forward", *lean)
    loud.assert_outcomes(failed=1)
    loud.stdout.fnmatch_lines(["forward first goes wrong in down, call 1: at *", "(whole)#0: *> * at *"])
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    raced = pytester.runpytest_inprocess("--pair", f"{toy}:RACED", "-k", "lap", *lean)
    raced.assert_outcomes(passed=1, deselected=len(checks))


def test_a_side_that_raises_while_it_is_traced_is_a_line(toy, command, tmp_path, capsys):
    assert command("trace", f"{toy}:BROKEN", tmp_path / "out") == 2
    assert f"error: RuntimeError: not written yet at {toy}:" in capsys.readouterr().err


def test_a_hint_that_raises_takes_no_report_with_it(toy):
    first = next(row for row in run_pair(find_pair(f"{toy}:MUTE")).rows if row.hint)
    assert first.hint.startswith(f"no hint: ZeroDivisionError at {toy}:")


def test_evidence_is_a_side_s_own_and_names_tell_sides_apart(toy):
    pair = find_pair(f"{toy}:PAIR")
    with closing(Runner(pair, ["loss"])) as runner:
        for side in (pair.port, replace(pair.port, build=find_pair(f"{toy}:LOUD").port.build)):
            loss = runner.open_case(pair.find_cases(None)[0]).evidence(side).found.tensors["mb0.loss"]
            assert torch.equal(loss, trace_case(side, pair.find_cases(None)[0]).tensors["mb0.loss"])
    for name in ("", "mine"):
        with pytest.raises(InputError, match=f"toy: sides: found several called {name or 'nothing'}, expected names"):
            replace(pair, sides=[replace(pair.port, name=name)], port=replace(pair.port, name=name))


def test_what_gets_no_gradient_on_both_sides_is_no_alarm(toy):
    result = run_pair(find_pair(f"{toy}:DEAD"))
    assert result.passed
    lines = flows(result.gradient_flow, result.baseline)
    assert {line[0]: line[2] for line in lines if "paper" in line[1]} == {
        f"unused.{name}": "trainable, but got no gradient: its path to the loss is cut, as in paper"
        for name in ("weight", "bias")
    }
    assert not any(line[-1] for line in lines)
