import json
import warnings

import pytest
from speculators.models.eagle3 import Eagle3SpeculatorConfig

from ports.eagle3.config import load_draft_config
from ports.training.alignment import Alignment
from ports.training.data.feature_layers import aux_layer_ids
from ports.training.saving import save_draft


@pytest.fixture
def load(fixture):
    """The fixture's draft config with some keys changed (None: taken out), loaded."""

    def go(alignment=Alignment.PROTOTYPE, steps=3, **changes):
        file = fixture / "draft_eagle3.json"
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
        return load_draft_config(str(file), str(fixture / "verifier"), steps, alignment)

    return go


def test_the_prototypes_json(load, fixture):
    config = load(steps=5)
    layer = config.transformer_layer_config
    assert isinstance(config, Eagle3SpeculatorConfig)
    assert (layer.num_hidden_layers, layer.head_dim, layer.vocab_size, config.draft_vocab_size) == (1, 12, 61, 23)
    norms = (config.norm_before_residual, config.norm_before_fc, config.fc_norm, config.norm_output)
    assert norms == (True, False, False, False)
    assert not config.embed_requires_grad
    assert layer.rope_parameters["rope_type"] == "llama3"
    assert layer.rope_parameters["factor"] == 4.0
    assert not hasattr(layer, "draft_vocab_size")


def test_it_is_attached_to_the_verifier(load, fixture):
    served = load(steps=5).speculators_config
    assert served.algorithm == served.default_proposal_method.replace("greedy", "eagle3") == "eagle3"
    assert served.proposal_methods[0].speculative_tokens == 5
    assert served.verifier.name_or_path == str(fixture / "verifier")
    assert load().eagle_aux_hidden_state_layer_ids == [3, 5, 6]


def test_a_checkpoint_directory_and_its_config_file(fixture, lively_draft, tmp_path):
    save_draft(lively_draft(), tmp_path / "model0")
    for path in (tmp_path / "model0", tmp_path / "model0" / "config.json"):
        config = load_draft_config(str(path), str(fixture / "verifier"), 4)
        assert config.draft_vocab_size == 23
        assert config.speculators_config.proposal_methods[0].speculative_tokens == 4
        assert config.transformer_layer_config.rope_parameters["factor"] == 4.0


def test_a_layer_of_qwen_3(load):
    layer = load(model_type="qwen3", mlp_bias=None, pretraining_tp=None).transformer_layer_config
    assert (layer.model_type, layer.head_dim, layer.layer_types) == ("qwen3", 12, ["full_attention"])
    assert layer.rope_parameters["factor"] == 4.0


def test_a_draft_that_says_everything(load):
    assert load(draft_vocab_size=61).draft_vocab_size == 61


BAD = [
    ("hidden_size", 64, "64", "32, the verifier's"),
    ("vocab_size", 62, "62", "61, the verifier's"),
    ("draft_vocab_size", None, "nothing", "the number of tokens the draft can say"),
    ("draft_vocab_size", "23", "23", "the number of tokens the draft can say"),
    ("draft_vocab_size", 0, "0", "1..61"),
    ("draft_vocab_size", 62, "62", "1..61"),
    ("hiden_size", 32, "an unknown key", "keys of a llama config and draft_vocab_size"),
    ("model_type", "gpt_oss", "gpt_oss", "llama or qwen3: Speculators holds no such draft of other layers"),
    ("attention_dropout", 0.1, "0.1", "0.0: TTT attention has no dropout"),
    ("num_key_value_heads", 3, "4 heads, 3 key/value heads", "a divisor of num_attention_heads"),
    ("num_hidden_layers", 2, "2", "1: the prototype's alignment is defined for one layer; --ttt_alignment chain"),
    ("num_hidden_layers", 0, "0", "a positive integer"),
]


@pytest.mark.parametrize(("name", "value", "found", "expected"), BAD)
def test_a_bad_value_is_refused(load, fixture, refuses, name, value, found, expected):
    with refuses(fixture / "draft_eagle3.json", name, found, expected):
        load(**{name: value})


def test_two_layers_are_fine_in_the_chain(load):
    assert load(Alignment.CHAIN, num_hidden_layers=2).transformer_layer_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "a readable JSON object"), ("[]", "a non-empty JSON object"), ("{}", "a non-empty JSON object")],
)
def test_a_file_that_holds_no_object_is_refused(fixture, refuses, content, expected):
    file = fixture / "draft_eagle3.json"
    file.write_text(content)
    with refuses(file, "configpath", "", expected):
        load_draft_config(str(file), str(fixture / "verifier"), 3)


def test_a_missing_config_is_refused(fixture, refuses, tmp_path):
    with refuses(tmp_path / "config.json", "configpath", "No such file", "a readable JSON object"):
        load_draft_config(str(tmp_path), str(fixture / "verifier"), 3)
    with refuses("nobody/nothing", "configpath", "no such file, directory or hub id", "a draft config"):
        load_draft_config("nobody/nothing", str(fixture / "verifier"), 3)


def test_a_missing_verifier_is_refused(fixture, refuses, tmp_path):
    with refuses(tmp_path, "basepath", "no config.json", "a Hugging Face model directory"):
        load_draft_config(str(fixture / "draft_eagle3.json"), str(tmp_path), 3)


@pytest.fixture
def native(fixture, lively_draft, tmp_path):
    """A Speculators config with some keys changed, loaded."""
    save_draft(lively_draft(), tmp_path / "model0")
    file = tmp_path / "model0" / "config.json"

    def go(alignment=Alignment.PROTOTYPE, **changes):
        values = json.loads(file.read_text())
        layer = changes.pop("layer", {})
        values["transformer_layer_config"] |= layer
        file.write_text(json.dumps({**values, **changes}))
        return load_draft_config(str(file), str(fixture / "verifier"), 3, alignment)

    go.file = file
    return go


NATIVE = [
    ({"speculators_model_type": "mtp"}, "speculators_model_type", "mtp", "eagle3"),
    ({"norm_before_residual": False}, "norms", "'norm_before_residual': False", "norm_before_residual alone"),
    ({"norm_before_fc": True}, "norms", "'norm_before_fc': True", "norm_before_residual alone"),
    ({"fc_norm": True}, "norms", "'fc_norm': True", "norm_before_residual alone"),
    ({"norm_output": True}, "norms", "'norm_output': True", "norm_before_residual alone"),
    ({"draft_vocab_size": "many"}, "config", "draft_vocab_size", "a Speculators eagle3 config"),
    ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, "eagle_aux_hidden_state_layer_ids", "[1, 2]", "3 layers"),
    ({"eagle_aux_hidden_state_layer_ids": [1, 2, 99]}, "eagle_aux_hidden_state_layer_ids", "[1, 2, 99]", "has 8"),
    ({"layer": {"model_type": "gpt_oss"}}, "transformer_layer_config.model_type", "gpt_oss", "llama or qwen3"),
    (
        {"layer": {"model_type": "llama4_text"}},
        "transformer_layer_config.model_type",
        "llama4_text",
        "Speculators holds",
    ),
    ({"layer": {"hidden_size": 64}}, "hidden_size", "64", "32, the verifier's"),
    ({"layer": {"num_hidden_layers": 2}}, "num_hidden_layers", "2", "--ttt_alignment chain takes more"),
]


@pytest.mark.parametrize(("changes", "field", "found", "expected"), NATIVE)
def test_a_speculators_config_that_trains_otherwise_is_refused(native, refuses, changes, field, found, expected):
    with refuses(native.file, field, found, expected):
        native(**changes)


def test_sliding_windows_are_refused(native, refuses):
    window = {
        "model_type": "qwen3",
        "layer_types": ["sliding_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    }
    with refuses(native.file, "layer_types", "sliding_attention", "full_attention: TTT attention has no window"):
        native(layer=window)


def test_named_feature_layers_are_kept(native):
    assert native(eagle_aux_hidden_state_layer_ids=[1, 3, 6]).eagle_aux_hidden_state_layer_ids == [1, 3, 6]


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
