"""vLLM as a side of a pair: transformers' models beside its own, and faults that must be placed."""

import pytest

from parity import run_pair
from parity.pair import module_of
from tests.needs import VLLM
from tests.serving.conftest import ROOT

pytestmark = [VLLM, pytest.mark.usefixtures("serve")]

MEAN = 1e-5
"""Nats that the log-probabilities may differ by on average in float32; bfloat16 of drawn weights to rounding."""


@pytest.fixture(scope="module")
def pairs(serve):
    """The example, which makes its models when it is imported."""
    return module_of(str(ROOT / "examples" / "pairs" / "engine.py"))


OPENED = [*((name, "float32") for name in ("llama", "qwen3", "gpt_oss")), ("qwen3", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), OPENED)
def test_every_module_is_within_rounding(pairs, name, dtype):
    report = run_pair(pairs.pair(name, dtype))
    assert report.passed, report
    rows = {row.tensor: row for row in report.rows}
    assert {"lm_head#0", "mb0.tap.rotated.key#6"} <= rows.keys()
    assert len([name for name in rows if name.endswith(".qkv_proj#0")]) == 7
    assert rows["logprobs"].measured < (MEAN if dtype == "float32" else rows["logprobs"].allowed)
    assert len([row for row in report.rows if row.check == "tokens"]) == pairs.PROMPTS


PLACES = {
    "rope theta": ("forward", "model.layers.0.self_attn"),
    "partial rotary factor": ("forward", "model.layers.0.self_attn"),
    "eps": ("forward", "model.layers.0.input_layernorm"),
    "left random": ("weights", "model.layers.3.mlp.gate_up_proj"),
}


@pytest.mark.parametrize("fault", PLACES)
def test_a_fault_is_placed(pairs, fault):
    report = run_pair(pairs.pair("qwen3", **pairs.FAULTS[fault]("qwen3")))
    assert (report.first.check, report.first.module) == PLACES[fault]


def test_a_bias_that_vllm_drops_is_named(pairs):
    first = run_pair(pairs.pair("qwen3_biased")).first
    assert (first.check, first.module) == ("weights", "model.layers.0.self_attn.o_proj")


def test_a_model_of_ones_own_is_within_rounding(pairs, monkeypatch):
    monkeypatch.setenv("MODEL", str(pairs.folder("llama")))
    report = run_pair(module_of(str(ROOT / "examples" / "pairs" / "engine_own.py")).FLOAT32)
    assert report.passed, report
    assert next(row for row in report.rows if row.tensor == "logprobs").measured < MEAN


@pytest.fixture(scope="module")
def drafts(serve):
    """The example with a draft."""
    return module_of(str(ROOT / "examples" / "pairs" / "engine_draft.py"))


def test_a_draft_is_within_rounding(drafts):
    report = run_pair(drafts.EAGLE3)
    assert report.passed, report
    rows = {row.tensor for row in report.rows}
    assert {"draft.lm_head#0", "mb0.tap.handed.hidden_states#0", "mb0.tap.handed.input_ids#0"} <= rows


DRAFTS = {
    "norm after": ("forward", "draft.model.layers.0"),
    "another layer": ("forward", "mb0.tap.handed.hidden_states#0"),
    "partial rotary factor": ("forward", "draft.model.layers.0.self_attn"),
    "map shifted": ("weights", "init.draft.draft_id_to_target_id"),
    "left random": ("weights", "init.draft.model.fc.weight"),
}
"""The check, and the module of the first place or, where no module is to blame, the first row."""


@pytest.mark.parametrize("fault", DRAFTS)
def test_a_fault_of_a_draft_is_named(drafts, fault):
    report = run_pair(drafts.served(drafter=drafts.FAULTS[fault]()))
    row = next(row for row in report.rows if not row.passed)
    check, place = DRAFTS[fault]
    assert report.first.check == row.check == check
    assert place in (report.first.module, row.tensor)


@pytest.fixture(scope="module")
def hass(serve):
    """The example with a draft that our plugin runs."""
    return module_of(str(ROOT / "examples" / "pairs" / "engine_hass.py"))


def test_a_hass_draft_is_within_rounding(hass):
    report = run_pair(hass.HASS)
    assert report.passed, report
    rows = {row.tensor for row in report.rows}
    assert {"draft.model.hidden_layernorm#0", "draft.lm_head#0", "mb0.tap.handed.hidden_states#0"} <= rows


def test_a_fault_of_a_hass_draft_is_named(hass):
    first = run_pair(hass.served(drafter=hass.FAULTS["eps"]())).first
    assert (first.check, first.module) == ("forward", "draft.model.embed_layernorm")


def test_vllm_refuses_a_hass_draft_that_lacks_a_tensor(hass):
    (row,) = run_pair(hass.served(drafter=hass.FAULTS["left random"]())).rows
    assert "HASS checkpoint: missing ['model.fc.weight']" in row.detail
