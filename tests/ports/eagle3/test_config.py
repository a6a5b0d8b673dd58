"""What an Eagle3 draft has of its own: norms, layers of two kinds, a vocabulary, and where its features come from."""

import json
import warnings

import pytest
from speculators.models.eagle3 import Eagle3SpeculatorConfig

from ports.eagle3.config import load_draft_config
from ports.training.online import aux_layer_ids
from ports.training.saving import save_draft


@pytest.fixture
def load(fixture):
    """The fixture's draft config with some keys changed (None: taken out), loaded."""

    def go(file=fixture / "draft_eagle3.json", **changes):
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
        return load_draft_config(str(file), str(fixture / "verifier"), 3)

    return go


def test_the_prototypes_json(load):
    config = load()
    assert isinstance(config, Eagle3SpeculatorConfig)
    assert config.draft_vocab_size == 23
    norms = (config.norm_before_residual, config.norm_before_fc, config.fc_norm, config.norm_output)
    assert norms == (True, False, False, False)
    assert not config.embed_requires_grad
    assert not hasattr(config.transformer_layer_config, "draft_vocab_size")
    assert load(draft_vocab_size=61).draft_vocab_size == 61


def test_a_layer_of_qwen_3(load):
    layer = load(model_type="qwen3", mlp_bias=None, pretraining_tp=None).transformer_layer_config
    assert (layer.model_type, layer.head_dim, layer.layer_types) == ("qwen3", 12, ["full_attention"])
    assert layer.rope_parameters["factor"] == 4.0


def test_named_feature_layers_are_kept(load, lively_draft, tmp_path):
    assert load().eagle_aux_hidden_state_layer_ids == [3, 5, 6]
    file = save_draft(lively_draft(), tmp_path / "model0") / "config.json"
    assert load(file, eagle_aux_hidden_state_layer_ids=[1, 3, 6]).eagle_aux_hidden_state_layer_ids == [1, 3, 6]


@pytest.mark.parametrize(("layers", "expected"), [(3, [3, 2, 1]), (7, [3, 4, 5]), (8, [3, 5, 6]), (32, [3, 17, 30])])
def test_feature_layers_follow_the_rule_in_silence(layers, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aux_layer_ids("v", layers) == expected


@pytest.mark.parametrize("layers", [4, 5, 6])
def test_feature_layers_that_repeat_are_made_distinct_with_a_warning(layers):
    with pytest.warns(UserWarning, match=f"a verifier of {layers} layers gives feature layers"):
        ids = aux_layer_ids("v", layers)
    assert len(set(ids)) == 3
    assert all(0 <= layer <= layers for layer in ids)


def test_a_verifier_of_two_layers_is_refused(refuses):
    with refuses("v", "num_hidden_layers", "2", "at least 3, to take features from"):
        aux_layer_ids("v", 2)
