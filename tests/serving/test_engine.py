"""vLLM as a side of a pair: transformers' models beside its own, and faults that must be placed."""

from __future__ import annotations

import pytest

from examples.pairs import engine
from parity import run_pair
from tests.needs import VLLM

pytestmark = [VLLM, pytest.mark.usefixtures("serve")]

MEAN = {"float32": 1e-5, "bfloat16": 3e-3}
"""Nats that the log-probabilities may differ by on average, whatever rounding may do."""


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("qwen3", "float32"), ("qwen3", "bfloat16")])
def test_every_module_is_within_rounding(name, dtype) -> None:
    report = run_pair(engine.pair(name, dtype))
    assert report.passed, report
    rows = {row.tensor: row for row in report.rows}
    assert {"model.layers.6.self_attn.qkv_proj#0", "lm_head#0", "mb0.tap.rotated.key#6"} <= rows.keys()
    assert rows["logprobs"].measured < MEAN[dtype]
    assert len([row for row in report.rows if row.check == "tokens"]) == engine.PROMPTS


PLACES = {
    "rope theta": ("forward", "model.layers.0.self_attn"),
    "partial rotary factor": ("forward", "model.layers.0.self_attn"),
    "eps": ("forward", "model.layers.0.input_layernorm"),
    "left random": ("weights", "model.layers.3.mlp.gate_up_proj"),
}


@pytest.mark.parametrize("fault", engine.FAULTS)
def test_a_fault_is_placed(fault) -> None:
    report = run_pair(engine.pair("qwen3", **engine.FAULTS[fault]("qwen3")))
    assert report.first is not None
    assert (report.first.check, report.first.module) == PLACES[fault]
