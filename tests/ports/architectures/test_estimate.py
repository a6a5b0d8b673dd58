"""What a recipe takes is computed from the config alone, whatever the verifier's architecture."""

from __future__ import annotations

from ports.estimate import EstimateSettings, estimate
from ports.training.online import load_verifier


def test_the_verifiers_size_is_that_of_its_weights(draft):
    config = draft.tiny.draft(draft.algorithm, draft.layer, draft.folder / "draft.json")
    found = estimate(
        EstimateSettings(
            algorithm=draft.algorithm, model_path=str(draft.tiny.verifier), configpath=str(config), max_len=64
        )
    )
    model = load_verifier(str(draft.tiny.verifier), "auto", "cpu")
    item = 2 if draft.algorithm == "hass" else 4  # float16 for HASS, as the prototype reads its verifier
    assert found.verifier == item * sum(value.numel() for value in model.parameters())
    assert found.training_total > found.training["weights, gradients, Adam"] > 0
