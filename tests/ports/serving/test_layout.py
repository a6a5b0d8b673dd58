"""The folded form on disk, and the command that writes it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

import ports.serving.cli
from ports.eagle3 import train as eagle3
from ports.serving.plugin import ARCHITECTURE
from ports.training.saving import save_draft

LAYER = (
    *(f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "layers.0.post_attention_layernorm.weight",
)


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr("ports.commands.hush_libraries", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["serving", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            ports.serving.cli.main()
        return stop.value.code or 0, capsys.readouterr().err.strip().split("\n")[-1]

    return run


def test_the_command_writes_config_and_tensors(command, hass_draft, tmp_path):
    draft, output = save_draft(hass_draft, tmp_path / "draft"), tmp_path / "folded"
    assert command(draft, output)[0] == 0
    config, weights = json.loads((output / "config.json").read_text()), load_file(output / "model.safetensors")
    assert (config["architectures"], config["folded_embedding"]) == ([ARCHITECTURE], True)
    assert (config["model_type"], config["hidden_size"], config["vocab_size"]) == ("llama", 32, 61)
    assert set(weights) == {
        "embed_tokens.weight",
        "fc.weight",
        "hidden_layernorm.weight",
        "lm_head_layernorm.weight",
        *LAYER,
    }
    assert weights["embed_tokens.weight"].shape == (61, 32)
    assert torch.equal(weights["fc.weight"][:, :32], torch.eye(32))
    assert torch.equal(weights["fc.weight"][:, 32:], hass_draft.fc.weight[:, 32:])


def test_an_eagle3_draft_is_refused(command, settings, tmp_path):
    draft = save_draft(eagle3.build(settings()), tmp_path / "draft")
    code, said = command(draft, tmp_path / "folded")
    assert (code, (tmp_path / "folded").exists()) == (2, False)
    assert "speculators_model_type: found eagle3, expected hass" in said


def test_nothing_is_overwritten(command, hass_draft, tmp_path):
    draft = save_draft(hass_draft, tmp_path / "draft")
    code, said = command(draft, draft)
    assert code == 2
    assert "OUTPUT: found something there, expected a new or empty directory" in said
