"""What a server reads of a checkpoint, without a server: config keys, tensor names and shapes, the vocabulary map."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.serving.conftest import DRAFT_VOCAB_SIZE, SPEC, TTT_STEPS

HIDDEN, HEAD, INNER = SPEC.hidden_size, SPEC.attention_head_dim, SPEC.intermediate_size
QUERY, KEY = SPEC.num_attention_heads * HEAD, SPEC.num_key_value_heads * HEAD
SHAPES = {
    "embed_tokens.weight": (SPEC.vocab_size, HIDDEN),
    "fc.weight": (HIDDEN, 3 * HIDDEN),
    "layers.0.hidden_norm.weight": (HIDDEN,),
    "layers.0.input_layernorm.weight": (HIDDEN,),
    "layers.0.self_attn.q_proj.weight": (QUERY, 2 * HIDDEN),
    "layers.0.self_attn.k_proj.weight": (KEY, 2 * HIDDEN),
    "layers.0.self_attn.v_proj.weight": (KEY, 2 * HIDDEN),
    "layers.0.self_attn.o_proj.weight": (HIDDEN, QUERY),
    "layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
    "layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    "norm.weight": (HIDDEN,),
    "lm_head.weight": (DRAFT_VOCAB_SIZE, HIDDEN),
    "t2d": (SPEC.vocab_size,),
    "d2t": (DRAFT_VOCAB_SIZE,),
}


@pytest.fixture(scope="module")
def config(saved):
    return json.loads((saved.draft / "config.json").read_text())


@pytest.fixture(scope="module")
def tensors(saved):
    return load_file(saved.draft / "model.safetensors")


def test_the_config_says_how_the_draft_computes(config):
    assert config["speculators_model_type"] == "eagle3"
    assert config["norm_before_residual"] is True  # servers and Speculators default differently
    assert not any(config.get(name) for name in ("norm_before_fc", "fc_norm", "norm_output"))
    assert config["draft_vocab_size"] == DRAFT_VOCAB_SIZE
    assert config["eagle_aux_hidden_state_layer_ids"] == [3, 5, 6]  # of 8 layers


def test_the_config_holds_the_layer(config):
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"]) == ("llama", 1)
    assert (layer["hidden_size"], layer["head_dim"], layer["vocab_size"]) == (HIDDEN, HEAD, SPEC.vocab_size)
    assert layer["max_position_embeddings"] == SPEC.max_position_embeddings
    assert layer["rope_parameters"]["rope_theta"] == SPEC.rope_theta


def test_the_config_names_the_verifier_and_the_proposal(config, saved):
    attached = config["speculators_config"]
    assert attached["verifier"]["name_or_path"] == str(saved.verifier)
    assert attached["verifier"]["architectures"] == ["LlamaForCausalLM"]
    assert attached["proposal_methods"][0]["speculative_tokens"] == TTT_STEPS


def test_the_tensors_are_those_of_the_layout(tensors):
    assert {name: tuple(value.shape) for name, value in tensors.items()} == SHAPES
    assert {value.dtype for name, value in tensors.items() if name not in ("t2d", "d2t")} == {torch.float32}


def test_the_vocabulary_map_names_the_kept_tokens(tensors):
    t2d, d2t = tensors["t2d"], tensors["d2t"]
    assert (t2d.dtype, d2t.dtype) == (torch.bool, torch.int64)
    assert torch.equal(t2d.nonzero()[:, 0], d2t + torch.arange(DRAFT_VOCAB_SIZE))


def test_the_tokenizer_lies_beside(saved):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (saved.draft / name).read_bytes() == (saved.verifier / name).read_bytes()
