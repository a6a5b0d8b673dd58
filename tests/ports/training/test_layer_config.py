import pytest

from ports.training.draft_config import layer_config

GOOD = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 61,
    "rope_theta": 5e5,
    "rope_scaling": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_values_arrive():
    config = layer_config("a.json", {**GOOD, "head_dim": 12, "rope_scaling": LLAMA3, "rms_norm_eps": 1e-4})
    assert (config.hidden_size, config.head_dim, config.rms_norm_eps) == (32, 12, 1e-4)
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 8.0, 5e5)


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}])
def test_both_spellings_of_rope_scaling(scaling):
    rope = layer_config("a.json", {**GOOD, "rope_scaling": scaling}).rope_parameters
    assert rope["rope_type"] == ("linear" if scaling else "default")


BAD = [
    ("hidden_size", "32", "'32'", "a positive integer"),
    ("hidden_size", 32.0, "32.0", "a positive integer"),
    ("intermediate_size", -1, "-1", "a positive integer"),
    ("num_attention_heads", 0, "0", "a positive integer"),
    ("num_hidden_layers", True, "True", "a positive integer"),
    ("head_dim", 7, "7", "an even number, for rotary embeddings"),
    ("hidden_act", "nope", "'nope'", "silu"),
    ("hidden_act", ["silu"], "['silu']", "silu"),
    ("rope_scaling", "x", "'x'", "llama3"),
    ("rope_scaling", {"rope_type": "nope"}, "'nope'", "llama3"),
    ("pad_token_id", 61, "61", "null or an id in [0, 61)"),
    ("pad_token_id", -1, "-1", "null or an id in [0, 61)"),
]


@pytest.mark.parametrize(("name", "value", "found", "expected"), BAD)
def test_a_value_out_of_its_range_is_refused(refuses, name, value, found, expected):
    with refuses("a.json", name, found, expected):
        layer_config("a.json", {**GOOD, name: value})


@pytest.mark.parametrize(("name", "value"), [("rms_norm_eps", "small"), ("attention_bias", "yes")])
def test_what_transformers_refuses_is_refused(refuses, name, value):
    with refuses("a.json", "config", name, "values of a llama config"):
        layer_config("a.json", {**GOOD, name: value})


def test_heads_that_do_not_divide_the_hidden_size_are_refused(refuses):
    with refuses("a.json", "config", "not a multiple of the number of attention heads (5)", "values of a llama config"):
        layer_config("a.json", {**GOOD, "num_attention_heads": 5})
