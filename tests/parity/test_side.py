"""Defaults of a side: pretrained checkpoints, the output's own loss, schedules and steps; the package's names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import parity
from parity import CommandSide, Side, compare_sides, single_step, trace_side
from parity.errors import InputError
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


def model(**changes: Any) -> Any:
    def build() -> nn.Module:
        return LlamaForCausalLM(LlamaConfig(**{**TINY.to_dict(), **changes})).train()

    return build


def ids() -> dict[str, Tensor]:
    tokens = torch.arange(14).reshape(2, 7) % 40
    return {"input_ids": tokens, "labels": tokens}


def test_a_whole_language_model_with_its_own_loss_and_checkpoint() -> None:
    report = compare_sides(Side(model()), Side(model(), name="again"), [ids()])
    report.raise_if_failed()
    loss = trace_side(Side(model()), [ids()], steps=1).curve[0].loss
    assert 2.0 < loss < 6.0  # cross entropy over 40 tokens, not the distance to a pattern
    called = {row.tensor.partition("#")[0] for row in report.rows if row.check == "forward"}
    assert {"model.layers.1.self_attn.q_proj", "model.norm", "lm_head", "(whole)"} <= called


@pytest.mark.parametrize(
    ("changes", "module"),
    [({"rms_norm_eps": 1e-2}, "model.layers.0.input_layernorm"), ({"hidden_act": "gelu"}, "model.layers.0.mlp.act_fn")],
)
def test_another_config_is_located(changes: dict[str, Any], module: str) -> None:
    report = compare_sides(Side(model()), Side(model(**changes)), [ids()], checks=["forward"])
    assert report.first is not None
    assert report.first.module == module


def louder(module: Any) -> nn.Module:
    module.model.layers[1].mlp.up_proj.register_forward_hook(lambda part, args, out: out * 1.01)
    return module


def test_a_single_step_of_a_model_with_a_key_value_cache() -> None:
    single_step(Side(model()), Side(model()), ids()).raise_if_failed()
    report = single_step(Side(model()), Side(lambda: louder(model()())), ids())
    assert {row.run for row in report.rows if row.status.value == "failed"} == {"model.layers.1.mlp.up_proj"}


def test_checkpoints_go_through_save_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Path] = []

    def save(self: Any, folder: Path) -> None:
        saved.append(folder)
        with torch.no_grad():
            self.model.norm.weight.mul_(2)
        original(self, folder)
        with torch.no_grad():
            self.model.norm.weight.div_(2)

    original = LlamaForCausalLM.save_pretrained
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)
    report = compare_sides(Side(model()), Side(model()), [ids()], checks=["round_trip"])
    assert saved
    assert {row.tensor for row in report.rows if not row.passed} == {"model.norm.weight", "loss"}


def test_schedules_and_steps_take_part() -> None:
    def clip(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_value_(module.parameters(), 1e-3)
        optimizer.step()

    def halving(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    side = Side(lambda: nn.Linear(3, 3), optimizer=sgd, schedule=halving, step=clip)
    batches = [torch.ones(2, 3)]
    trace = trace_side(side, batches, steps=3)
    assert [point.lr_used for point in trace.curve] == [1.0, 0.5, 0.25]
    moved = (trace.tensors["after.weight"] - trace.tensors["init.weight"]).abs().max()
    assert float(moved) == pytest.approx(1e-3, rel=1e-4)
    compare_sides(side, side, batches).raise_if_failed()


def test_seeds_are_the_same_on_both_sides_and_after_a_resume() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(self.linear(x))

    batches = [torch.ones(2, 8), torch.zeros(2, 8)]
    compare_sides(Side(Noisy), Side(Noisy), batches, seed=3).raise_if_failed()
    traces = [trace_side(Side(Noisy), batches, seed=seed, steps=1) for seed in (3, 4)]
    assert traces[0].curve[0].loss != traces[1].curve[0].loss


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        parity.nothing  # noqa: B018


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, parity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


SCRIPT = """
import sys, torch
from torch import nn
from parity import Side, trace_side, write_trace

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.weight.data.copy_(torch.eye(3))
        self.bias.data.fill_(BIAS)

write_trace(trace_side(Side(Net), [torch.ones(2, 3)]), sys.argv[1])
"""


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.weight.data.copy_(torch.eye(3))
        self.bias.data.fill_(0.5)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandSide:
    """In a process of its own, with another bias."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (tmp_path / "side.py").write_text(SCRIPT.replace("BIAS", "0.25"))
    return Side.command([sys.executable, str(tmp_path / "side.py"), "{out}"], name="elsewhere")


def test_a_command_is_an_original_whose_weights_go_to_the_port(command: CommandSide) -> None:
    report = compare_sides(command, Side(Net), [torch.ones(2, 3)])
    report.raise_if_failed()
    assert report.report.baseline == "elsewhere"
    assert {row.check for row in report.rows if row.passed} >= {"weights", "forward", "curve", "round_trip", "resume"}
    assert compare_sides(command, Side(Net), [torch.ones(2, 3)], copy_weights=False).failed == ("weights",)


def test_a_command_as_the_port_is_compared_as_far_as_its_trace_goes(command: CommandSide) -> None:
    report = compare_sides(Side(Net), command, [torch.ones(2, 3)])
    assert report.failed == ("weights",)
    reasons = {row.check: row.detail for row in report.rows if row.status is Status.NOT_APPLICABLE}
    assert reasons["round_trip"] == reasons["resume"] == "a trace leaves nothing to run again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["python"], "python: words: found"),
        (["/no/such/program", "{out}"], "/no/such/program: command: found"),
        ([sys.executable, "-c", "pass", "{out}"], "trace: found no such folder"),
    ],
)
def test_a_command_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        compare_sides(Side.command(words), Side(Net), [torch.ones(2, 3)])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("code", "detail"),
    [("import sys; sys.exit('no room')", "exit code 1: no room"), ("import time; time.sleep(60)", "within 0.5 s")],
)
def test_a_command_that_fails_is_a_failed_row(code: str, detail: str) -> None:
    command = Side.command([sys.executable, "-c", code, "{out}"], timeout=0.5 if "sleep" in code else 60)
    report = compare_sides(command, Side(Net), [torch.ones(2, 3)])
    assert report.failed == ("run",)
    assert detail in report.rows[0].detail


def test_code_that_raises_while_saving_is_a_failure() -> None:
    def save(module: nn.Module, folder: Path) -> None:
        raise RuntimeError("no room")

    report = compare_sides(Side(Net), Side(Net, save=save), [torch.ones(2, 3)])
    assert report.failed == ("round_trip",)
    assert "RuntimeError: no room at" in str(report)
    assert "test_side.py" in str(report)


def test_a_loss_that_is_no_number_is_a_failed_row() -> None:
    report = compare_sides(Side(Net, loss=lambda module, batch: module(batch)), Side(Net), [torch.ones(2, 3)])
    assert report.failed == ("run",)
    assert "must be one number, found shape (2, 3)" in report.rows[0].detail


def test_reports_are_written(tmp_path: Path) -> None:
    report = compare_sides(Side(Net, name="paper"), Side(Net, name="mine"), [torch.ones(2, 3)])
    report.write_html(tmp_path / "report.html")
    report.write_json(tmp_path / "report.json")
    assert "mine" in (tmp_path / "report.html").read_text()
    assert '"passed": true' in (tmp_path / "report.json").read_text()
