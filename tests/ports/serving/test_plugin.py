"""The plugin without vLLM: it is found, imports cleanly, registers what it must, and completes the config."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers import LlamaConfig

from ports.serving.plugin import ARCHITECTURE, describe, register
from ports.training.saving import save_draft

ROOT = Path(__file__).resolve().parents[3]


def test_the_entry_point_is_the_plugin():
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.value.startswith("ports.")]
    assert found.load() is register


def test_it_imports_without_vllm(fork):
    code = "import sys; assert 'ports.serving.plugin' not in sys.modules; sys.modules['vllm'] = None"
    done = fork(exec, f"{code}; import ports.serving.plugin, ports.serving.fold")
    assert done.ended() == ""
    assert done.returncode == 0


@pytest.mark.parametrize("lost", ["vllm.transformers_utils.configs.speculators.algos", "vllm.ModelRegistry"])
def test_a_server_whose_insides_moved_goes_on_without_hass(monkeypatch, caplog, lost):
    """vLLM calls the plugin in every server; nothing is half registered."""
    registered = []
    registry = SimpleNamespace(
        get_supported_archs=lambda: registered, register_model=lambda *model: registered.append(model)
    )
    path = ["vllm", "transformers_utils", "configs", "speculators", "algos"]
    for length in range(1, len(path) + 1):
        monkeypatch.setitem(sys.modules, ".".join(path[:length]), ModuleType(".".join(path[:length])))
    if lost == "vllm.ModelRegistry":
        sys.modules[".".join(path)].register_speculator = lambda name: lambda describe: describe
    else:
        sys.modules["vllm"].ModelRegistry = registry
        monkeypatch.setitem(sys.modules, lost, None)
    register()
    (line,) = caplog.messages
    assert line.startswith("HASS drafts cannot be served by this release of vLLM, everything else can: ")
    assert lost.rpartition(".")[2] in line
    assert registered == []


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
