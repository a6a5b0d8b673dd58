"""What training takes: the counts, and the page of the shipped recipe."""

from pathlib import Path

import pytest
import torch

from parity.pair import module_of
from ports.eagle3.config import load_draft_config as eagle3_config
from ports.estimate import (
    PROBES,
    build_objective,
    kept_bytes,
    training_memory,
)
from ports.files import gigabytes
from ports.hass.config import load_draft_config as hass_config
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation, attention_name

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama_3_1_8b"
LOAD = {"eagle3": eagle3_config, "hass": hass_config}
TRAINED = "weights, gradients, Adam"


@pytest.fixture
def config(fixture):
    return lambda algorithm: LOAD[algorithm](str(fixture / f"draft_{algorithm}.json"), str(fixture / "verifier"), 3)


def test_the_page_of_the_recipe_is_what_is_computed_now(monkeypatch):
    """All columns but the measured activations, which take a minute: those may be anything positive."""
    example = module_of(str(EXAMPLE / "estimate.py"))
    monkeypatch.setattr(example, "training_memory", lambda *arguments: {})
    page = (EXAMPLE / "README.md").read_text()
    for algorithm, gpus in example.RECIPES:
        records, generation, _, verifier = example.bytes_of(algorithm, gpus)
        line = next(line for line in page.splitlines() if line.startswith(f"| {algorithm}, {gpus} GPU"))
        assert f"| {gigabytes(records)} | {gigabytes(generation)} | " in line, (
            "run python examples/llama_3_1_8b/estimate.py"
        )
        training, online = (float(cell.split(" GB")[0]) for cell in line.split("|")[4:6])
        assert training > 0
        assert online - training == pytest.approx(verifier / 1e9, abs=0.11)


def test_activations_at_any_length_are_what_two_short_ones_foretell(config, algorithm):
    foretold = training_memory(config(algorithm), 3, 1000, 0.5, 1)["activations"]
    assert max(PROBES) < 1000
    assert foretold == pytest.approx(kept_bytes(build_objective(config(algorithm), 3), 1000, 500), rel=0.02)


def test_dense_attention_is_not_foretold(config):
    """The comparison above would notice a tensor that grows with the square of the length."""
    objective = build_objective(config("eagle3"), 3)
    objective.draft.config.transformer_layer_config._attn_implementation = attention_name(
        Alignment.PROTOTYPE, AttentionImplementation.EAGER
    )
    short, middle, long = (kept_bytes(objective, tokens, 8) for tokens in (64, 128, 256))
    assert (long - middle) > 2.2 * (middle - short)


@pytest.mark.parametrize(("algorithm", "vocabulary"), [("eagle3", 23), ("hass", 61)])
def test_weights_are_counted_as_an_optimizer_holds_them(config, algorithm, vocabulary):
    one, two = (training_memory(config(algorithm), 3, 100, 0.5, gpus) for gpus in (1, 2))
    trained = [p for p in build_objective(config(algorithm), 3).parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    size = 4 * sum(map(torch.numel, trained))
    assert one[TRAINED] == 2 * size + sum(4 * value.numel() for value in moments)
    assert sum(two.values()) - sum(one.values()) == size
    assert one["target"] == 4 * 50 * vocabulary
