"""The plugin without vLLM: it is found, imports cleanly, registers what it must, and completes the config."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

from transformers import LlamaConfig

from ports.serving.plugin import ARCHITECTURE, describe, register
from ports.training.saving import save_draft

ROOT = Path(__file__).resolve().parents[3]


def test_the_entry_point_is_the_plugin():
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.value.startswith("ports.")]
    assert found.load() is register


def test_it_imports_without_vllm(fork):
    code = "import sys; assert 'ports.serving.plugin' not in sys.modules; sys.modules['vllm'] = None"
    done = fork(exec, f"{code}; import ports.serving.plugin, ports.serving.__main__")
    assert done.ended() == ""
    assert done.returncode == 0


def test_the_config_is_completed(hass_draft, tmp_path):
    """Releases of transformers differ in which defaults a checkpoint leaves out; vLLM knows none of them."""
    file = save_draft(hass_draft, tmp_path / "draft") / "config.json"
    whole = json.loads(file.read_text())
    layer = whole["transformer_layer_config"]
    layer.pop("hidden_act", None)
    layer.pop("attention_bias", None)
    describe(whole, layer)
    expected = LlamaConfig(**hass_draft.config.transformer_layer_config.to_dict()).to_dict()
    assert {"hidden_act", "attention_bias", "rms_norm_eps", "head_dim", "vocab_size"} <= expected.keys()
    assert ARCHITECTURE.startswith("Eagle")
    assert layer == {**expected, "architectures": [ARCHITECTURE], "draft_vocab_size": 61, "folded_embedding": False}
