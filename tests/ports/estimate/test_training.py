from __future__ import annotations

import pytest
import torch

from ports.eagle3.config import load_draft_config as eagle3_config
from ports.estimate.training import PROBES, build_objective, kept_bytes, training_memory
from ports.hass.draft_config import load_draft_config as hass_config
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation, attention_name

LOAD = {"eagle3": eagle3_config, "hass": hass_config}


@pytest.fixture
def config(fixture):
    return lambda algorithm: LOAD[algorithm](str(fixture / f"draft_{algorithm}.json"), str(fixture / "verifier"), 3)


@pytest.mark.parametrize("tokens", [128, 1000])
@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_activations_at_any_length_are_what_two_short_ones_foretell(config, algorithm, tokens) -> None:
    foretold = training_memory(config(algorithm), 3, tokens, 0.5, 1).activations
    measured = kept_bytes(build_objective(config(algorithm), 3, "cpu"), tokens, tokens // 2)
    assert tokens > max(PROBES)
    assert foretold == pytest.approx(measured, rel=0.02)


def test_dense_attention_is_not_foretold(config) -> None:
    """The comparison above would notice a tensor that grows with the square of the length."""
    objective = build_objective(config("eagle3"), 3, "cpu")
    objective.draft.config.transformer_layer_config._attn_implementation = attention_name(
        Alignment.PROTOTYPE, AttentionImplementation.EAGER
    )
    short, middle, long = (kept_bytes(objective, tokens, 8) for tokens in (64, 128, 256))
    assert (long - middle) > 2.2 * (middle - short)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_weights_are_counted(config, algorithm) -> None:
    one, two = (training_memory(config(algorithm), 3, 100, 0.5, gpus) for gpus in (1, 2))
    objective = build_objective(config(algorithm), 3, "cpu")
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert one.trained == 16 * trained
    assert two.total - one.total == 4 * trained
    assert one.target == 4 * 50 * (23 if algorithm == "eagle3" else 61)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad])
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(value.numel() * 4 for state in optimizer.state.values() for value in state.values() if value.dim())
    assert one.trained == held + 2 * 4 * trained
