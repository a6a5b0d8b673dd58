"""The draft that a verifier gets if nobody says otherwise: widths, heads and tokens of verifiers that are released."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaConfig

from parity.fixtures.architectures import ARCHITECTURES, build_architecture
from parity.fixtures.tokenizer import LLAMA3
from ports.eagle3.config import load_draft_config
from ports.training.derived import derived_config

GLM = {"head_dim": 128, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        ("gpt_oss", 17280),  # an expert's is 2,880; SpecForge takes this
        ("minimax_m2", 18432),  # 1,536 at h 3,072
        ("mixtral", 24576),
        ("qwen3_5_moe_text", 12288),  # names none but its experts'
        ("qwen3_moe", 6144),
        ("deepseek_v3", 18432),
        ("glm4_moe", 10944),
        ("llama4_text", 16384),  # an expert's is 8,192
        ("longcat_flash", 12288),  # under another name
        ("gemma3n_text", 16384),  # one for each layer
        ("llama", 11008),
        ("gemma2", 9216),
    ],
)
def test_the_mlp_is_as_wide_as_a_dense_one(kind, width):
    assert derived_config(AutoConfig.for_model(kind))["intermediate_size"] == width


@pytest.mark.parametrize(
    ("kind", "sizes", "heads"),
    [
        ("glm4_moe", {**GLM, "hidden_size": 4096, "num_attention_heads": 96}, (64, 8, 128)),
        ("glm4_moe", {**GLM, "hidden_size": 5120, "num_attention_heads": 96}, (80, 8, 128)),
        ("gpt_oss", {}, (64, 8, 64)),
        ("deepseek_v3", {}, (128, 128, 64)),
        ("falcon", {"num_kv_heads": 1}, (71, 71, 64)),
    ],
)
def test_heads_are_as_many_as_a_llama_layer_can_have(kind, sizes, heads):
    found = LlamaConfig.from_dict(derived_config(AutoConfig.for_model(kind, **sizes)))
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == heads


@pytest.fixture(scope="module")
def verifier_once(tmp_path_factory):
    return build_architecture(ARCHITECTURES["llama"], tmp_path_factory.mktemp("llama") / "verifier")


@pytest.fixture
def layer_of(verifier_once, tmp_path):
    """The layer of the default draft with ``said`` in its config; the verifier's own names no tokens."""
    verifier = Path(shutil.copytree(verifier_once, tmp_path / "verifier"))
    config = json.loads((verifier / "config.json").read_text())
    silent = {name: value for name, value in config.items() if not name.endswith("token_id")}
    (verifier / "config.json").write_text(json.dumps(silent))

    def load(generation=None, **said):
        if generation is not None:
            (verifier / "generation_config.json").write_text(json.dumps(generation))
        file = tmp_path / "draft.json"
        derived = derived_config(AutoConfig.from_pretrained(verifier))
        file.write_text(json.dumps({**derived, "draft_vocab_size": 64, **said}))
        return load_draft_config(str(file), str(verifier), 3).transformer_layer_config

    return load


TOKENS = [
    ("tokenizer", None, {}, (LLAMA3.id_of("<|begin_of_text|>"), LLAMA3.id_of("<|eot_id|>"))),
    ("generation config", {"bos_token_id": 7, "eos_token_id": [8, 9]}, {}, (7, [8, 9])),
    ("draft", None, {"bos_token_id": 5, "eos_token_id": 6}, (5, 6)),
]


@pytest.mark.parametrize(("by", "generation", "said", "expected"), TOKENS, ids=[each[0] for each in TOKENS])
def test_a_draft_begins_and_ends_as_its_verifier(layer_of, by, generation, said, expected):
    """And not with Llama's 1 and 2; what the draft's own config says stays."""
    layer = layer_of(generation, **said)
    assert (layer.bos_token_id, layer.eos_token_id) == expected


def test_heads_that_do_not_divide_are_refused_in_words_that_help(layer_of, tmp_path, refuses):
    expected = "a divisor of hidden_size 64, as Llama layers have it beside a head_dim too: 4, for one"
    with refuses(tmp_path / "draft.json", "num_attention_heads", "6", expected):
        layer_of(num_attention_heads=6)
