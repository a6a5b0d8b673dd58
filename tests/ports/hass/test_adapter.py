"""The stand-ins for the prototype's model and config."""

from __future__ import annotations

import pytest
import torch
from speculators import SpeculatorModel

from ports.hass.adapter import EConfig, Model

PROTOTYPE_NAMES = {
    "embed_tokens.weight",
    "hidden_layernorm.weight",
    "embed_layernorm.weight",
    "lm_head_layernorm.weight",
    "fc.weight",
    "layers.0.post_attention_layernorm.weight",
    *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}


@pytest.fixture
def model(fixture):
    return Model(
        EConfig.from_pretrained(str(fixture / "draft_hass.json")), load_emb=True, path=str(fixture / "verifier")
    )


def test_parameters_and_state_go_by_the_prototypes_names(model):
    assert {name for name, _ in model.named_parameters()} == PROTOTYPE_NAMES
    assert model.state_dict().keys() == PROTOTYPE_NAMES
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {"embed_tokens.weight"}


def test_steps_with_history_are_the_unrolled_steps(model, batch_of):
    batch = batch_of(0, 1)
    history: list[torch.Tensor] = []
    for step in model.draft(batch["features"], batch["input_ids"], batch["attention_mask"], 4):
        out = model(step.hidden_in, batch["input_ids"], batch["attention_mask"], history)
        assert torch.equal(out, step.hidden)
        history.append(step.hidden_in)


def test_it_runs_in_eval_mode_and_without_a_mask(model, batch_of):
    batch = batch_of(0)
    masked = model(batch["features"], batch["input_ids"], batch["attention_mask"])
    assert torch.equal(model.eval()(batch["features"], batch["input_ids"]), masked)


def test_training_it_trains_the_native_draft(model, batch_of, tmp_path):
    before, batch = model.draft.fc.weight.clone(), batch_of(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(batch["features"], batch["input_ids"]).square().sum().backward()
    optimizer.step()
    reopened = SpeculatorModel.from_pretrained(model.save_native(tmp_path / "native"))
    assert not torch.equal(reopened.fc.weight, before)
    assert torch.equal(reopened.fc.weight, model.fc.weight)
    assert reopened.config.speculators_config.proposal_methods[0].speculative_tokens == 3
