"""A checkpoint is opened whole or refused, and its untrained twin is what training starts from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ports.eagle3 import train as eagle3
from ports.evaluate.drafts import open_draft, untrained
from ports.training.saving import save_draft


def change_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_every_trained_tensor_is_the_checkpoints(pair):
    saved = load_file(pair.directory / "model.safetensors")
    own = pair.draft.state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items())
    assert all(value.isfinite().all() for value in own.values())
    assert not pair.draft.training


@pytest.mark.parametrize("spelled", ["verifier", "./verifier", "data_hass/../verifier", "link"])
def test_where_training_ran_does_not_matter(spelled, build, fixture, tmp_path, monkeypatch):
    (fixture / "link").symlink_to("verifier")
    monkeypatch.chdir(fixture)
    directory = save_draft(build(basepath=spelled), tmp_path / "draft")
    monkeypatch.chdir(tmp_path)
    assert open_draft(directory).config.speculators_config.verifier.name_or_path == str(fixture / "verifier")


def test_the_verifier_may_have_moved(pair, tmp_path, refuses):
    moved = shutil.move(pair.verifier, tmp_path / "moved")
    with refuses(pair.directory / "config.json", "verifier", str(pair.verifier), "one that is there: --verifier"):
        open_draft(pair.directory)
    again = open_draft(pair.directory, str(moved))
    assert torch.equal(again.embed_tokens.weight, pair.draft.embed_tokens.weight)
    assert again.config.speculators_config.verifier.name_or_path == str(moved)


def test_untrained_is_the_start_of_training(pair, settings):
    fresh, again, other = untrained(pair.draft, 3), untrained(pair.draft, 3), untrained(pair.draft, 4)
    names = [name for name, value in pair.draft.named_parameters() if value.requires_grad and value.dim() == 2]
    for name in set(names) - {"lm_head.weight", "embed_tokens.weight"}:
        assert torch.equal(fresh.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(fresh.get_parameter(name), other.get_parameter(name))
        assert not torch.equal(fresh.get_parameter(name), pair.draft.get_parameter(name))
    if pair.draft.config.speculators_model_type == "eagle3":
        torch.manual_seed(3)
        started = eagle3.build(settings(forward_num_total=3))
        assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in started.state_dict().items())


def test_a_checkpoint_with_a_tensor_missing_is_refused(pair, refuses):
    file = pair.directory / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "fc.weight"}, file, {"format": "pt"})
    with refuses(file, "tensors", "fc.weight", "exactly the draft's tensors"):
        open_draft(pair.directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(pair, refuses, value):
    file = pair.directory / "model.safetensors"
    weights = load_file(file)
    weights["fc.weight"][1, 2] = value
    save_file(weights, file, {"format": "pt"})
    with refuses(file, "fc.weight", "NaN or Inf", "finite values"):
        open_draft(pair.directory)


@pytest.mark.parametrize("damage", [lambda content: b"\0" * 64, lambda content: content[:-8]], ids=["zeros", "cut"])
def test_damaged_weights_are_the_drafts(pair, refuses, damage):
    file = pair.directory / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with refuses(file, "ckpt_path", "", "safetensors"):
        open_draft(pair.directory)


@pytest.mark.parametrize("kind", ["dflash", None])
def test_other_kinds_of_drafts_are_refused(pair, refuses, kind):
    change_config(pair.directory, speculators_model_type=kind)
    with refuses(pair.directory, "speculators_model_type", str(kind), "eagle3 or hass"):
        open_draft(pair.directory)


def test_a_directory_without_a_config_is_refused(tmp_path, refuses):
    with refuses(tmp_path, "DRAFT", "no config.json", "checkpoint"):
        open_draft(tmp_path)


def test_a_verifier_of_another_size_is_refused(pair, refuses):
    change_config(pair.verifier, hidden_size=64)
    with refuses(pair.verifier, "hidden_size", "64", "32"):
        open_draft(pair.directory)


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_a_layer_that_speculators_has_no_draft_of_is_refused(pair, refuses, kind):
    config = json.loads((pair.directory / "config.json").read_text())
    change_config(pair.directory, transformer_layer_config={**config["transformer_layer_config"], "model_type": kind})
    with refuses(pair.directory, "transformer_layer_config.model_type", kind, "Speculators holds no such draft"):
        open_draft(pair.directory)
