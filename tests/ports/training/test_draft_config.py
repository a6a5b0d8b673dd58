"""From whatever names a draft to its config, for both algorithms, and every value that is refused on the way."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from ports.eagle3.config import load_draft_config as load_eagle3
from ports.errors import InputError
from ports.hass.config import load_draft_config as load_hass
from ports.training.alignment import Alignment
from ports.training.draft_config import attach_verifier, check_sizes, id_of_newest
from ports.training.online import aux_layer_ids
from ports.training.saving import save_draft
from tests.ports.conftest import TRAIN, edit, enliven, settings_of

LOAD = {"eagle3": load_eagle3, "hass": load_hass}


@pytest.mark.parametrize(("own", "warned"), [(511, True), (512, False)])
def test_fewer_positions_than_the_verifier_has_are_said(recwarn, own, warned):
    sizes = {"hidden_size": 8, "vocab_size": 16}
    layer, verifier = (SimpleNamespace(**sizes, max_position_embeddings=count) for count in (own, 512))
    check_sizes("config.json", layer, verifier)
    said = "max_position_embeddings: found 511, the verifier has 512"
    assert [said in str(warning.message) for warning in recwarn] == [True] * warned


def test_a_verifier_in_the_hubs_cache_is_named_by_its_id_and_another_by_its_place(fixture, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--owner--some-name"
    place = Path(shutil.copytree(fixture / "verifier", model / "snapshots" / "0a1b"))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0a1b")
    named = [attach_verifier("hass", str(each), 3).verifier.name_or_path for each in (place, fixture / "verifier")]
    assert named == ["owner/some-name", str(fixture / "verifier")]
    (model / "refs" / "main").write_text("ffff")  # the id stands for another one now
    assert attach_verifier("hass", str(place), 3).verifier.name_or_path == str(place)
    assert id_of_newest(Path("/model")) is None, "directly below the root, as in a container"


@pytest.fixture
def load(fixture):
    """The fixture's draft config with some keys changed (an ellipsis takes one out), loaded."""

    def go(algorithm, alignment=Alignment.PROTOTYPE, steps=3, **changes):
        edit(file := fixture / f"draft_{algorithm}.json", **changes)
        return LOAD[algorithm](str(file), str(fixture / "verifier"), steps, alignment)

    return go


@pytest.fixture
def checkpoint(fixture, tmp_path):
    """A directory that a draft was saved in."""

    def save(algorithm):
        settings = settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints")
        return save_draft(enliven(TRAIN[algorithm][0].build(settings)), tmp_path / "draft")

    return save


def test_a_checkpoint_directory_and_its_config_file(load, checkpoint, fixture, algorithm):
    folder = checkpoint(algorithm)
    for path in (folder, folder / "config.json"):
        config = LOAD[algorithm](str(path), str(fixture / "verifier"), 4, Alignment.CHAIN)
        assert config.speculators_config.proposal_methods[0].speculative_tokens == 4
        assert config.transformer_layer_config.to_dict() == load(algorithm).transformer_layer_config.to_dict()
        assert getattr(config, "ttt_alignment", "chain") == "chain", "the command line says it"


def test_named_feature_layers_are_kept_and_a_layer_may_be_qwen_3s(load, checkpoint, fixture):
    edit(file := checkpoint("eagle3") / "config.json", eagle_aux_hidden_state_layer_ids=[1, 3, 6])
    assert load_eagle3(str(file), str(fixture / "verifier"), 3).eagle_aux_hidden_state_layer_ids == [1, 3, 6]
    layer = load("eagle3", model_type="qwen3", mlp_bias=..., pretraining_tp=...).transformer_layer_config
    assert (layer.model_type, layer.head_dim, layer.layer_types) == ("qwen3", 12, ["full_attention"])


@pytest.mark.parametrize(("layers", "expected"), [(3, [3, 2, 1]), (7, [3, 4, 5]), (8, [3, 5, 6]), (32, [3, 17, 30])])
def test_feature_layers_follow_the_rule_in_silence(layers, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aux_layer_ids("v", layers) == expected


@pytest.mark.parametrize("layers", [4, 5, 6])
def test_feature_layers_that_repeat_are_made_distinct_with_a_warning(layers, refuses):
    with pytest.warns(UserWarning, match=f"a verifier of {layers} layers gives feature layers"):
        ids = aux_layer_ids("v", layers)
    assert len({layer for layer in ids if 0 <= layer <= layers}) == 3
    with refuses("v", "num_hidden_layers", "2", "at least 3, to take features from"):
        aux_layer_ids("v", 2)


BOTH, EAGLE3, HASS = ("eagle3", "hass"), ("eagle3",), ("hass",)
BAD = [
    (BOTH, "hidden_size", 64, "64", "32, the verifier's"),
    (BOTH, "vocab_size", 62, "62", "61, the verifier's"),
    (BOTH, "intermediate_size", -1, "-1", "a positive integer"),
    (BOTH, "num_hidden_layers", 0, "0", "a positive integer"),
    (BOTH, "num_key_value_heads", 0, "0", "a positive integer"),
    (BOTH, "attention_dropout", 0.1, "0.1", "0.0: TTT attention has no dropout"),
    (BOTH, "num_hidden_layers", 2, "2", "1: the prototype's alignment is defined for one layer; --ttt-alignment chain"),
    (BOTH, "num_key_value_heads", 3, "4 heads, 3 key/value heads", "a divisor of num_attention_heads"),
    (EAGLE3, "speculators_model_type", "mtp", "mtp", "eagle3"),
    (HASS, "speculators_model_type", "eagle3", "eagle3", "hass"),
    (EAGLE3, "draft_vocab_size", ..., "nothing", "the number of tokens the draft can say"),
    (EAGLE3, "draft_vocab_size", "23", "23", "the number of tokens the draft can say"),
    (EAGLE3, "draft_vocab_size", 0, "0", "1..61"),
    (EAGLE3, "draft_vocab_size", 62, "62", "1..61"),
    (EAGLE3, "hiden_size", 32, "an unknown key", "keys of a llama config and draft_vocab_size"),
    (EAGLE3, "model_type", "gpt_oss", "gpt_oss", "llama or qwen3: Speculators holds no such draft of other layers"),
    (HASS, "draft_vocab_size", 23, "an unknown key", "keys of a llama config"),
    (HASS, "model_type", "mistral", "mistral", "llama"),
]
OF_THE_LAYER = [
    *({"hidden_size": value} for value in ("32", 32.0)),
    {"head_dim": 7},
    *({"hidden_act": value} for value in ("sliu", ["silu"])),
    *({"rope_scaling": value} for value in ("x", {"rope_type": "nope"})),
    *({"rms_norm_eps": "small"}, {"attention_bias": "yes"}, {"num_attention_heads": 5, "head_dim": ...}),
]


@pytest.mark.parametrize("changes", OF_THE_LAYER, ids=str)
def test_a_value_that_no_layer_can_have_is_refused(load, changes):
    """By transformers in one release, by what the draft is built of in another."""
    with pytest.raises(InputError, match=r"draft_hass\.json: \w+: found .*, expected "):
        load("hass", **changes)


@pytest.mark.parametrize(
    ("algorithm", "name", "value", "found", "expected"), [(one, *rest) for many, *rest in BAD for one in many]
)
def test_a_bad_value_is_refused(load, fixture, refuses, algorithm, name, value, found, expected):
    with refuses(fixture / f"draft_{algorithm}.json", name, found, expected):
        load(algorithm, **{name: value})


LAYER = "transformer_layer_config.model_type"
NO_LAYER = "Speculators holds no such draft of other layers"
BAD_NATIVE = [
    (BOTH, {"layer": {"model_type": "gpt_oss"}}, LAYER, "gpt_oss", NO_LAYER),
    (BOTH, {"layer": {"num_hidden_layers": []}}, "config", "", "a Speculators "),
    (BOTH, {"layer": {"dtype": []}}, "config", "list index out of range", ""),
    (EAGLE3, {"auto_map": 7}, "config", "item assignment", "a draft that can be built"),
    (HASS, {"layer": {"model_type": "qwen3"}}, LAYER, "qwen3", f"llama: {NO_LAYER}"),
    *(
        (EAGLE3, {norm: norm != "norm_before_residual"}, "norms", f"'{norm}': ", "norm_before_residual alone")
        for norm in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    ),
    (EAGLE3, {"draft_vocab_size": "many"}, "config", "draft_vocab_size", "a Speculators eagle3 config"),
    *(
        (EAGLE3, {"eagle_aux_hidden_state_layer_ids": ids}, "eagle_aux_hidden_state_layer_ids", str(ids), expected)
        for ids, expected in (([1, 2], "3 layers"), ([1, 2, 99], "has 8"))
    ),
    (
        EAGLE3,
        {"layer": {"model_type": "qwen3", "layer_types": ["sliding_attention"], "sliding_window": 4}},
        *("layer_types", "sliding_attention", "full_attention: TTT attention has no window"),
    ),
]


@pytest.mark.parametrize(
    ("algorithm", "changes", "field", "found", "expected"), [(one, *rest) for many, *rest in BAD_NATIVE for one in many]
)
def test_a_speculators_config_that_trains_otherwise_is_refused(
    checkpoint, fixture, refuses, algorithm, changes, field, found, expected
):
    file = checkpoint(algorithm) / "config.json"
    changes = {**changes}
    layer = {**changes.pop("layer", {}), "use_sliding_window": True}
    edit(file, lambda content: content["transformer_layer_config"].update(layer), **changes)
    with refuses(file, field, found, expected):
        LOAD[algorithm](str(file), str(fixture / "verifier"), 3)


NO_OBJECTS = [
    ("{", "", "a readable JSON object"),
    ("[]", "list", "a non-empty JSON object"),
    ("{}", "dict", "a non-empty JSON object"),
    (None, "No such file", "a readable JSON object"),
]


@pytest.mark.parametrize(("content", "found", "expected"), NO_OBJECTS)
def test_what_holds_no_object_is_refused(fixture, tmp_path, refuses, content, found, expected):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with refuses(tmp_path / "config.json", "draft_config", found, expected):
        load_eagle3(str(tmp_path), str(fixture / "verifier"), 3)
    with refuses("nobody/nothing", "draft_config", "no such file, directory or hub id", "a draft config"):
        load_eagle3("nobody/nothing", str(fixture / "verifier"), 3)
