"""A verifier whose weights are not all there is refused by name, whoever reads it."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ports.errors import InputError
from ports.verifier.loading import check_verifier, load_verifier
from tests.ports.test_refusals import refused

LAYER = "model.layers.3."
QUERY, DOWN = f"{LAYER}self_attn.q_proj.weight", f"{LAYER}mlp.down_proj.weight"
NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


def without(*starts):
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(starts)}


def filled(value, *starts):
    return lambda weights: {
        name: torch.full_like(tensor, value) if name.startswith(starts) else tensor for name, tensor in weights.items()
    }


def one(value):
    def put(weights):
        weights[DOWN][1, 2] = value
        return weights

    return put


LOST = {  # how, and what the refusal names
    "query": (without(QUERY), QUERY, "missing"),
    "down": (without(DOWN), DOWN, "missing"),
    "layer": (without(LAYER), f"{LAYER}input_layernorm.weight", "missing"),
    "norm": (without(NORM), NORM, "missing"),
    "head": (without(HEAD), HEAD, "missing"),
    "embedding": (without(EMBEDDING), EMBEDDING, "missing"),
    "renamed": (lambda weights: {name.replace(DOWN, f"{DOWN}_"): weights[name] for name in weights}, DOWN, "missing"),
    "shape": (lambda weights: {**weights, QUERY: weights[QUERY][:-1].clone()}, QUERY, "shape"),
    "more": (lambda weights: {**weights, f"{QUERY}s": weights[QUERY].clone()}, f"{QUERY}s", "unexpected"),
    "zero matrix": (filled(0.0, QUERY), QUERY, "zeros"),
    "zero norm": (filled(0.0, NORM), NORM, "zeros"),
    "all zero": (filled(0.0, ""), "weight", "zeros"),
    "NaN": (one(torch.nan), DOWN, "NaN"),
    "infinity": (one(torch.inf), DOWN, "infinity"),
}


def lose(folder, how):
    """Write the verifier's weights anew, in one file."""
    weights = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(how(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("way", LOST)
def test_weights_that_are_not_all_there_are_refused_by_name(fixture, way):
    """With the head, without it, and for vLLM, which reads the directory itself."""
    folder, (how, name, found) = fixture / "verifier", LOST[way]
    lose(folder, how)
    loads = {
        "head": lambda: load_verifier(str(folder), "float32", "cpu", head=True),
        "backbone": lambda: load_verifier(str(folder), "float32", "cpu"),
        "engine": lambda: check_verifier(str(folder)),
    }
    for load in loads.values():
        with pytest.raises(InputError) as caught:
            load()
        assert name in str(caught.value), caught.value
        assert found in str(caught.value), caught.value


READERS = ("generate", "answers", "online", "evaluate")
ENDS = ("norm", "head", "embedding", "zero norm", "all zero")
COMMANDS = [*((name, "renamed") for name in READERS), *(("eagle3", way) for way in ENDS), ("hass", "embedding")]


@pytest.mark.parametrize(("command", "way"), [*COMMANDS, ("arrow", "head")])
def test_no_command_goes_on_without_a_tensor(built, place, command, way):
    """Training on stored records reads the verifier's ends alone. Of ``draft`` and ``bench`` their own tests tell."""
    how, name, found = LOST[way]
    lose(place.verifier, how)
    refused(place.run(command), name, found)
    if command in ("generate", "answers"):  # nothing was made, so that the verifier's mending makes no other run
        shutil.rmtree(place.verifier)
        shutil.copytree(built.verifier, place.verifier)
        assert place.run(command).code == 0


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
}


def tied(weights, config):
    """Llama's own older files: a computed buffer, no head, and layers for further tokens."""
    weights = without(HEAD)(weights) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    weights["model.layers.3.mlp.down_proj.weight"] = torch.ones(32, 48)
    return weights, {**config, "tie_word_embeddings": True, "num_nextn_predict_layers": 1}


def multimodal(weights, config):
    """A text model that stands in a checkpoint beside what sees."""
    return {**weights, "vision_tower.layers.0.weight": torch.ones(2, 2)}, config


def biased(weights, config):
    """Biases of zeros, as many are initialised."""
    return filled(0.0, *(name for name in weights if name.endswith("bias")))(weights), config


LEGITIMATE = [
    ("Llama", {}, tied),
    ("Gemma3Text", {}, multimodal),
    ("Gemma", {}, lambda weights, config: (filled(0.0, NORM, f"{LAYER[:-2]}0.input")(weights), config)),
    ("Qwen2", {}, biased),
    ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, biased),
]


@pytest.mark.parametrize(("name", "entries", "change"), LEGITIMATE)
def test_what_a_class_rightly_leaves_out_or_starts_with_is_taken(tmp_path, name, entries, change):
    config = getattr(transformers, f"{name}Config")(**SIZES, **entries)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    weights, words = change(
        load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    )
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(words))
    load_verifier(str(tmp_path), "float32", "cpu", head=True)
    check_verifier(str(tmp_path))
