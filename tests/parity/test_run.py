"""Pairs of strangers run, recorded and held against their recordings; traces written elsewhere are compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import parity.cli
from parity import fixtures
from parity.environment import describe
from parity.persist import read_trace, write_trace
from parity.run import TRACED, find_pair
from parity.trace import Trace
from tests.parity.faults import change_draft, swap_attention

pytest_plugins = ["pytester"]
Run = Callable[..., int]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ports on one TTT step, traced by the command."""
    output = tmp_path_factory.mktemp("traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["parity", "trace", "all", str(output), "-k", "k1"])
        patch.setattr(parity.cli, "hush", lambda: None)
        with pytest.raises(SystemExit) as stop:
            parity.cli.main()
    assert not stop.value.code
    return output


@pytest.fixture
def changed(traced: Path, tmp_path: Path) -> Callable[[Callable[[Trace], Any]], Path]:
    """A copy of the Eagle3 trace with a change."""

    def change(how: Callable[[Trace], Any]) -> Path:
        trace = read_trace(traced / "eagle3_fp32_k1")
        return write_trace(how(trace) or trace, tmp_path / "changed")

    return change


def test_the_ports_compute_what_they_did_under_an_older_speculators(
    traced: Path, command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_trace(fixtures.TRACES / "hass_fp32_k1").environment["speculators"] == "0.8.1"
    code = command("compare", fixtures.TRACES, traced)
    out = capsys.readouterr().out
    assert code == 0, out
    assert "PASS" in out
    now = describe()
    for name, then in (("speculators", "0.8.1"), ("transformers", "5.16.1")):
        assert (f"{name}: {then} on the original's side, {now[name]} on the port's" in out) == (then != now[name])


def test_a_trace_equals_itself(traced: Path, command: Run, tmp_path: Path) -> None:
    words = ("--report", tmp_path / "page.html", "--json", tmp_path / "rows.json")
    assert command("compare", traced, traced, *words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"eagle3_fp32_k1", "hass_fp32_k1"}
    assert {row["check"] for row in rows} == set(TRACED)
    exact = [row for row in rows if row["check"] != "gradient_flow" and row["against"] != "reference"]
    assert all(row["measured"] in (0, None) for row in exact)
    assert "eagle3_fp32_k1" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("plant", "module"),
    [
        (change_draft(lambda draft: draft.norm.register_forward_hook(lambda m, a, out: out * 1.01)), "norm"),
        (
            change_draft(lambda d: d.layers[0].mlp.up_proj.register_forward_hook(lambda m, a, out: out + 0.01)),
            "layers.0.mlp.up_proj",
        ),
    ],
    ids=["norm", "up_proj"],
)
def test_an_upgrade_that_changes_a_module_is_located(
    plant: Any,
    module: str,
    traced: Path,
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch)
    assert command("trace", "eagle3", tmp_path, "-k", "fp32_k1") == 0
    words = ("--json", tmp_path / "rows.json")
    assert command("compare", traced / "eagle3_fp32_k1", tmp_path / "eagle3_fp32_k1", *words) == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    hints = [row["hint"] for row in rows if row["hint"]]
    assert len(hints) == 1
    assert f"goes wrong in {module}:" in hints[0]
    assert f"first: forward first goes wrong in {module}:" in capsys.readouterr().out


def test_attention_of_later_steps_is_located(command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("trace", "eagle3", tmp_path / "a", "-k", "fp32_k3_bs1") == 0
    with pytest.MonkeyPatch.context() as patch:
        swap_attention("ttt_prototype_fast", "ttt_chain_fast")(patch)
        assert command("trace", "eagle3", tmp_path / "b", "-k", "fp32_k3_bs1") == 0
    assert command("compare", tmp_path / "a", tmp_path / "b") == 1
    assert "first goes wrong in layers.0.self_attn, call 2" in capsys.readouterr().out


def scaled(name: str, factor: float) -> Callable[[Trace], None]:
    def change(trace: Trace) -> None:
        trace.tensors[name] = trace.tensors[name] * factor

    return change


def test_a_missing_case_fails(traced: Path, command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(traced / "hass_fp32_k1", tmp_path / "hass_fp32_k1")
    assert command("compare", traced, tmp_path) == 1
    assert "missing in" in capsys.readouterr().out


def test_chosen_checks_and_own_tolerances(traced: Path, changed: Any, command: Run, tmp_path: Path) -> None:
    other = changed(scaled("mb0.step0.logits", 1.001))
    assert command("compare", traced / "eagle3_fp32_k1", other, "--checks", "loss,gradients") == 0
    row = {"kind": "OF_MAX", "bound": 0.01, "reason": "coarse on purpose"}
    (tmp_path / "own.json").write_text(json.dumps({"out": row}))
    assert command("compare", traced / "eagle3_fp32_k1", other, "--tolerances", tmp_path / "own.json") == 0


def test_names_of_a_file_are_used(traced: Path, changed: Any, command: Run, tmp_path: Path) -> None:
    def rename(trace: Trace) -> Trace:
        tensors = {name.replace("fc.weight", "fusion.weight"): value for name, value in trace.tensors.items()}
        tensors = {name.replace("call.fc#", "call.fusion#"): value for name, value in tensors.items()}
        trained = tuple(name.replace("fc.", "fusion.") for name in trace.trained)
        return replace(
            trace, tensors=tensors, trained=trained, calls=tuple(c.replace("fc#", "fusion#") for c in trace.calls)
        )

    other = changed(rename)
    (tmp_path / "names.json").write_text('{"fc": "fusion"}')
    assert command("compare", traced / "eagle3_fp32_k1", other, "--names", tmp_path / "names.json") == 0
    assert command("compare", traced / "eagle3_fp32_k1", other) == 1


def test_a_dtype_without_tolerances_is_skipped_with_the_remedy(
    traced: Path, changed: Any, command: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("compare", traced / "eagle3_fp32_k1", changed(lambda trace: replace(trace, dtype="bf16"))) == 1
    out = capsys.readouterr().out
    assert "no default tolerances for bf16" in out
    assert "--tolerances FILE" in out
    assert "Nothing was compared" in out


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (["compare", "/no/where", "/no/where"], "", "/no/where: trace: found no such folder"),
        (["compare", "{tmp}", "{tmp}"], "", "trace.json: found missing, expected a trace, or folders with one each"),
        (["compare", "{traced}", "{traced}/hass_fp32_k1"], "", "one trace, as in the other folder"),
        (["compare", "{traced}", "{traced}", "--checks", "speed"], "", "--checks: found speed"),
        (["compare", "{traced}", "{traced}", "--names", "{file}"], '{"a": 1}', "file.json: a: found 1"),
        (["compare", "{traced}", "{traced}", "--names", "{file}"], '{"a": "c", "b": "c"}', "c: found several"),
        (
            ["compare", "{traced}", "{traced}", "--tolerances", "{file}"],
            '{"out": 1}',
            "file.json: out: found 1, expected Input should be",
        ),
        (
            ["compare", "{traced}", "{traced}", "--tolerances", "{file}"],
            '{"out": {"kind": "OF_MAX", "bound": -1, "reason": "x"}}',
            "file.json: out.bound: found -1",
        ),
        (
            ["compare", "{traced}", "{traced}", "--tolerances", "{file}"],
            '{"out": {"kind": "OF_MAX", "bound": 1, "reason": " "}}',
            "file.json: out.reason: found ' '",
        ),
        (["trace", "medusa", "{tmp}"], "", "PAIR: found medusa, expected eagle3, hass or FILE.py:NAME"),
        (["trace", "all", "{tmp}", "-k", "k99"], "", "-k: found 'k99'"),
        (["trace", "all", "{tmp}", "--leave-out", "grad"], "", "--leave-out: found grad"),
    ],
)
def test_bad_input_exits_with_two(
    words: list[str],
    content: str,
    message: str,
    traced: Path,
    command: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file.json").write_text(content)
    places = {"{tmp}": tmp_path, "{traced}": traced, "{file}": tmp_path / "file.json"}
    for mark, place in places.items():
        words = [word.replace(mark, str(place)) for word in words]
    assert command(*words) == 2
    assert message in capsys.readouterr().err


def test_a_truncated_file_is_named(traced: Path, changed: Any, command: Run, capsys: Any) -> None:
    file = changed(lambda trace: None) / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert command("compare", traced / "eagle3_fp32_k1", file.parent) == 2
    assert f"error: {file}: file: found" in capsys.readouterr().err


TOY = """
import torch
from pathlib import Path
from torch import nn
from parity import Case, FolderSide, Pair, Side

class Net(nn.Linear):
    def __init__(self, factor=1.0, fails=False):
        super().__init__(3, 3)
        self.factor, self.fails = factor, fails

    def forward(self, x):
        if self.fails and len(x) == 2:
            raise RuntimeError("not written yet")
        return super().forward(x) * self.factor

CASES = [Case("one", [torch.ones(2, 3)]), Case("two", [torch.ones(4, 3)], steps=2)]
PAPER, MINE = Side(Net, name="paper"), Side(Net, name="mine")
PAIR = Pair("toy", PAPER, MINE, CASES)
LOUD = Pair("loud", PAPER, Side(lambda: Net(1.1), name="mine"), CASES)
BROKEN = Pair("broken", PAPER, Side(lambda: Net(fails=True), name="mine"), CASES)
LIVE = Pair("live", FolderSide(Path(__file__).parent / "kept", "kept"), MINE, CASES, live=lambda root: PAPER)
NEEDY = Pair("needy", None, MINE, CASES, live=lambda root: PAPER, remedy="git clone it")
REASONS = Pair("reasons", PAPER, MINE, CASES[:1], not_applicable={"resume": "no state"})
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "toy_pairs", raising=False)
    (tmp_path / "toy_pairs.py").write_text(TOY)
    return tmp_path / "toy_pairs.py"


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.parametrize(
    ("name", "words", "code", "failed"),
    [
        ("PAIR", [], 0, set()),
        ("PAIR", ["-k", "two", "--checks", "loss,forward"], 0, set()),
        ("PAIR", ["-k", "three"], 1, set()),
        ("LOUD", [], 1, {("one", "forward"), ("two", "forward")}),
        ("BROKEN", [], 1, {("one", "run")}),
        ("REASONS", [], 0, set()),
    ],
)
def test_a_stranger_s_pair_is_run(
    name: str, words: list[str], code: int, failed: set[tuple[str, str]], toy: Path, command: Run, tmp_path: Path
) -> None:
    assert command("run", f"{toy}:{name}", *words, "--json", tmp_path / "rows.json") == code
    rows = rows_of(tmp_path / "rows.json")
    assert {(row["case"], row["check"]) for row in rows if row["status"] == "failed"} == failed
    if "--checks" in words:
        assert {(row["case"], row["check"]) for row in rows} == {("two", "forward"), ("two", "loss")}


def test_an_exception_of_a_side_says_where_and_the_other_cases_run(toy: Path, command: Run, tmp_path: Path) -> None:
    command("run", f"{toy}:BROKEN", "--json", tmp_path / "rows.json")
    rows = rows_of(tmp_path / "rows.json")
    detail = next(row["detail"] for row in rows if row["check"] == "run")
    line = TOY.splitlines().index('            raise RuntimeError("not written yet")') + 1
    assert detail.startswith("RuntimeError: not written yet at ")
    assert detail.endswith(f"toy_pairs.py:{line}")
    assert {row["check"] for row in rows if row["case"] == "two" and row["passed"]} >= {"forward", "curve", "resume"}


def test_a_reason_is_a_row(toy: Path, command: Run, tmp_path: Path) -> None:
    command("run", f"{toy}:REASONS", "--json", tmp_path / "rows.json")
    (row,) = (row for row in rows_of(tmp_path / "rows.json") if row["check"] == "resume")
    assert (row["status"], row["detail"], row["against"]) == ("not applicable", "no state", "itself")


def test_a_recorded_original_stands_for_it(toy: Path, command: Run, tmp_path: Path, capsys: Any) -> None:
    assert command("record", f"{toy}:PAIR", "--output", tmp_path / "kept") == 0
    assert command("run", f"{toy}:LIVE", "--json", tmp_path / "rows.json") == 0
    assert {row["against"] for row in rows_of(tmp_path / "rows.json") if row["passed"]} == {
        "prototype",
        "reference",
        "itself",
    }
    assert command("run", f"{toy}:LOUD", "--recordings", tmp_path / "kept") == 1
    assert command("run", f"{toy}:PAIR", "--recordings", tmp_path / "kept") == 0
    capsys.readouterr()
    assert command("run", f"{toy}:NEEDY") == 2
    assert "--original: found nothing, expected a checkout. git clone it" in capsys.readouterr().err
    assert command("run", f"{toy}:NEEDY", "--original", tmp_path, "-k", "two") == 0
    assert command("run", f"{toy}:PAIR", "--original", tmp_path) == 2


def test_a_pair_becomes_test_items(toy: Path, pytester: pytest.Pytester) -> None:
    lean = [word for name in ("cacheprovider", "hypothesispytest", "xdist") for word in ("-p", f"no:{name}")]
    result = pytester.runpytest_inprocess("--pair", f"{toy}:PAIR", "-rs", *lean)
    outcomes = result.parseoutcomes()
    checks = {check.name for check in find_pair(f"{toy}:PAIR").every_check} - {"initialisation", "throughput"}
    unused = {"batches", "draws", "targets", "paths", "hits", "schedule", "precision"}
    assert outcomes == {"passed": 2 * len(checks - unused), "skipped": 2 * len(unused)}
    result.stdout.fnmatch_lines(["SKIPPED*neither side draws anything that has a name"])
    broken = pytester.runpytest_inprocess("--pair", f"{toy}:BROKEN", "-k", "one", *lean)
    broken.assert_outcomes(failed=1, skipped=len(checks) - 1, deselected=len(checks))
    loud = pytester.runpytest_inprocess("--pair", f"{toy}:LOUD", "-k", "two-mine-forward", *lean)
    loud.assert_outcomes(failed=1)
    loud.stdout.fnmatch_lines(["(whole)#0: *> 1e-05 at *"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{toy}:NOTHING", "NOTHING: found nothing of that name, expected a parity.Pair"),
        ("{toy}:CASES", "CASES: found list, expected a parity.Pair"),
        ("{toy}", "PAIR: found {toy}, expected eagle3, hass or FILE.py:NAME"),
        ("nowhere.py:PAIR", "nowhere.py: PAIR: found no such file, expected FILE.py:NAME"),
        ("no.module:PAIR", "PAIR: found no.module, expected a file or a module"),
    ],
)
def test_what_is_no_pair_is_refused(name: str, message: str, toy: Path, command: Run, capsys: Any) -> None:
    assert command("run", name.replace("{toy}", str(toy))) == 2
    assert message.replace("{toy}", str(toy)) in capsys.readouterr().err
