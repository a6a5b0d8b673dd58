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
import parity.kit
from parity import Side, compare_sides, single_step, trace_side

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


def test_the_package_offers_the_kit_s_names() -> None:
    assert set(parity.KIT) == set(parity.kit.__all__)
    assert parity.compare_sides is compare_sides
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        parity.nothing  # noqa: B018


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, parity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
