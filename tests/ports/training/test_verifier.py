import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ports.training.verifier import check_weights_present, full_head, tokenizer_files, verifier_config


def test_the_config_of_a_verifier(fixture):
    config = verifier_config(str(fixture / "verifier"))
    assert (config.hidden_size, config.vocab_size, config.num_hidden_layers) == (32, 61, 8)


def test_the_text_config_of_a_multimodal_verifier(tmp_path):
    from transformers import LlavaConfig

    LlavaConfig().save_pretrained(tmp_path)
    config = verifier_config(str(tmp_path))
    assert config.model_type == "llama"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nothing"}', "\x00"])
def test_a_config_that_cannot_be_read_is_refused(fixture, refuses, content):
    (fixture / "verifier" / "config.json").write_text(content)
    with refuses(fixture / "verifier", "basepath", "", "a model directory or hub id"):
        verifier_config(str(fixture / "verifier"))


def test_a_directory_without_config_and_an_unknown_name_are_refused(tmp_path, refuses):
    with refuses(tmp_path, "basepath", "no config.json", "a Hugging Face model directory"):
        verifier_config(str(tmp_path))
    with refuses("nobody/nothing", "basepath", "", "a model directory or hub id"):
        verifier_config("nobody/nothing")


def test_present_weights_pass(fixture, tmp_path):
    check_weights_present(str(fixture / "verifier"))
    check_weights_present("org/hub-id")
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    check_weights_present(str(tmp_path))


def test_a_missing_index_is_refused(fixture, refuses):
    (fixture / "verifier" / "model.safetensors.index.json").unlink()
    expected = "an index (or a single model.safetensors)"
    with refuses(fixture / "verifier", "model.safetensors.index.json", "missing", expected):
        check_weights_present(str(fixture / "verifier"))


def test_a_missing_shard_is_refused(fixture, refuses):
    index = fixture / "verifier" / "model.safetensors.index.json"
    (fixture / "verifier" / "model-00002-of-00002.safetensors").unlink()
    found = "model-00002-of-00002.safetensors, which does not exist"
    with refuses(index, "weight_map", found, "shards that lie beside the index"):
        check_weights_present(str(fixture / "verifier"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "Expecting property name"),
        ("{}", "None"),
        ("3", "None"),
        ('{"weight_map": {}}', "{}"),
        ('{"weight_map": []}', "[]"),
    ],
)
def test_a_bad_index_is_refused(fixture, refuses, content, found):
    index = fixture / "verifier" / "model.safetensors.index.json"
    index.write_text(content)
    with refuses(index, "weight_map", found, "a non-empty object that maps tensors to shards"):
        check_weights_present(str(fixture / "verifier"))


def test_the_full_head_is_float32_and_the_embedding_of_a_tied_verifier(fixture):
    folder = fixture / "verifier"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    stored = load_file(folder / index["lm_head.weight"])["lm_head.weight"]
    assert torch.equal(full_head(str(folder)), stored.float())
    tied = folder.parent / "tied"
    tied.mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(3, 2, dtype=torch.bfloat16)}, tied / "model.safetensors")
    assert full_head(str(tied)).tolist() == [[1, 1]] * 3
    assert full_head(str(tied)).dtype is torch.float32


def test_tokenizer_files_are_those_a_tokenizer_is_read_from(fixture):
    folder = fixture / "verifier"
    assert tokenizer_files(str(folder)) == []
    names = ["chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    for name in [*names, "notes.txt"]:
        (folder / name).write_text(name)
    (folder / "tokenizer_cache").mkdir()
    assert [path.name for path in tokenizer_files(str(folder))] == names
