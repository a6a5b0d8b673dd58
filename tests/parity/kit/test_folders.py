"""``parity trace`` and ``parity compare``: traces written elsewhere, under another version, are compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fixtures
import parity.cli
from parity.environment import describe
from parity.trace import Trace
from parity.trace_folder import read_trace, write_trace
from tests.parity.faults import change_draft, swap_attention

Run = Callable[..., int]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ports on one TTT step, traced by the command."""
    output = tmp_path_factory.mktemp("traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["parity", "trace", "all", str(output), "-k", "k1"])
        patch.setattr("ports.commands.hush_libraries", lambda: None)
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
    checks = {"weights", "batches", "forward", "loss", "gradients", "optimizer_step", "curve"}
    assert {row["check"] for row in rows} == checks
    assert all(row["measured"] == 0 for row in rows)
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


def off_by_one(trace: Trace) -> None:
    trace.tensors["mb0.batch.loss_mask"] = trace.tensors["mb0.batch.loss_mask"].roll(1)


def later_loss(trace: Trace) -> None:
    trace.curve[7] = replace(trace.curve[7], loss=trace.curve[7].loss * 1.001)


def fewer_hits(trace: Trace) -> None:
    trace.curve = [replace(point, correct=0) for point in trace.curve]


def other_line(trace: Trace) -> None:
    trace.prints[1] += " again"


def no_gradient(trace: Trace) -> None:
    del trace.tensors["mb0.grad.fc.weight"]


def spare_tensor(trace: Trace) -> None:
    trace.tensors["mb0.spare"] = torch.ones(2)


def not_a_number(trace: Trace) -> None:
    trace.tensors["mb0.target_p"][0, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "check", "tensor"),
    [
        (scaled("init.fc.weight", 1.001), "weights", "init.fc.weight"),
        (off_by_one, "batches", "mb0.batch.loss_mask"),
        (scaled("mb0.step0.logits", 1.001), "forward", "mb0.step0.logits"),
        (not_a_number, "forward", "mb0.target_p"),
        (spare_tensor, "forward", "mb0.spare"),
        (scaled("mb0.step0.loss", 1.001), "loss", "mb0.step0.loss"),
        (scaled("mb0.grad.fc.weight", 1.001), "gradients", "mb0.grad.fc.weight"),
        (no_gradient, "gradients", "mb0.grad.fc.weight"),
        (scaled("after.fc.weight", 1.01), "optimizer_step", "after.fc.weight"),
        (scaled("final.fc.weight", 1.01), "curve", "final.fc.weight"),
        (later_loss, "curve", "loss"),
        (fewer_hits, "curve", "hits"),
        (other_line, "curve", "lines"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_part_of_a_trace_is_compared(
    change: Callable[[Trace], Any], check: str, tensor: str, traced: Path, changed: Any, command: Run, tmp_path: Path
) -> None:
    assert command("compare", traced / "eagle3_fp32_k1", changed(change), "--json", tmp_path / "rows.json") == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {(row["check"], row["tensor"]) for row in rows if row["status"] == "failed"} == {(check, tensor)}


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
        (["compare", "{traced}", "{traced}", "--tolerances", "{file}"], '{"out": 1}', "file.json: out: found 1"),
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
        (["trace", "medusa", "{tmp}"], "", "algorithm: found medusa, expected eagle3, hass or all"),
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
