"""Records by vLLM's own extraction, with a stand-in for vLLM: its cache, its requests, and the step that hands on late.

What vLLM itself gives is in tests/serving/test_records.py.
"""

import sys
from itertools import accumulate
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ports.flags import parse
from ports.generate import run as module
from ports.generate.__main__ import main
from ports.generate.run import GenerationSettings, prepare
from ports.verifier import interfaces
from ports.verifier.interfaces import lacks_states
from tests.ports.conftest import edit
from tests.ports.generate.conftest import SPEC, contents
from tests.ports.verifier.test_interfaces import VERSION, config_of

BLOCK = 4
ROUNDING = 2e-6
"""Of a row's length: batches are others."""
VLLMS = "vllm.distributed.kv_transfer.kv_connector.v1"


class Engine:
    """``LLM`` and its ``llm_engine``: a request a step, the last first, whose states lie in blocks of a cache."""

    fault = None

    def __init__(self, **options):
        self.options, self.llm_engine, self.waiting, self.ended = options, self, [], []
        self.model = AutoModelForCausalLM.from_pretrained(options["model"]).eval()
        self.model.model.norm = torch.nn.Identity()  # the last entry is before it
        from ports.verifier.connector import KeptStates

        self.connector, self.made = KeptStates(), 0
        self.entries = options["speculative_config"]["draft_model_config"]["hf_config"][
            "eagle_aux_hidden_state_layer_ids"
        ]

    def add_request(self, number, prompt, params):
        assert (params.max_tokens, params.temperature) == (1, 0.0)
        self.waiting.append((f"{number}-{self.made}", prompt["prompt_token_ids"]))
        self.made += 1

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        ended, self.ended = self.ended, []
        for request, states in ended:
            self._hand_on(request, states)
        if self.waiting:
            request, ids = self.waiting.pop()
            with torch.no_grad():
                found = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            states = torch.stack([found[entry][0] for entry in self.entries], dim=1)
            self.ended.append((request, FAULTS[self.fault](states) if self.fault else states))

    def _hand_on(self, request, states):
        """Through a cache [blocks, entries, slots, h] whose blocks lie backwards."""
        count = -(-len(states) // BLOCK)
        cache = torch.zeros(count + 1, states.shape[1], BLOCK, states.shape[2])
        blocks = [*range(count, 0, -1)]
        for place, state in enumerate(states):
            cache[blocks[place // BLOCK], :, place % BLOCK] = state
        self.connector._kv_cache = cache
        pending = SimpleNamespace(req_id=request, block_ids=blocks, token_ids=[0] * len(states))
        self.connector._submit_async_write(pending)
        assert self.connector._req_copy_events[request].query()

    def collective_rpc(self, act):
        return [act(None)]


FAULTS = {
    "a token is lost": lambda states: states[:-1],
    "nothing was written": torch.zeros_like,
    "a block is another's": lambda states: torch.cat([states[-BLOCK:], states[BLOCK:]]),
    "not a number": lambda states: states * torch.nan,
    "it ends": lambda states: states[9999],
}
SAID = (
    "vllm: found states [",
    "hidden_state: found the same number, 0.0",
    "again as row",
    "NaN or Inf",
    "vllm: found index",
)


@pytest.fixture
def vllm(monkeypatch):
    """As if it were installed."""
    monkeypatch.setattr(Engine, "fault", None)
    monkeypatch.delitem(sys.modules, "ports.verifier.connector", raising=False)
    base = type("Base", (), {"_is_tp_rank_zero": True, "_block_size": BLOCK})
    base.__init__ = lambda self: setattr(self, "_req_copy_events", {})

    def from_cache(cache, slots, count):
        return torch.stack([cache[slot // BLOCK, :, slot % BLOCK] for slot in slots.tolist()])[:count]

    for name in accumulate(VLLMS.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm"].LLM, sys.modules["vllm"].SamplingParams = Engine, SimpleNamespace
    sys.modules[VLLMS].example_hidden_states_connector = SimpleNamespace(
        ExampleHiddenStatesConnector=base, extract_from_kv_cache=from_cache
    )
    for place in (module, interfaces):
        monkeypatch.setattr(place, "installed", lambda: VERSION)
    yield
    sys.modules.pop("ports.verifier.connector", None)


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("changes", [{"aux_layers": "5,1,3"}, {"algorithm": "hass", "dtype": "float32"}])
def test_records_are_those_of_transformers(generate, tmp_path, capsys, changes):
    found = generate(outdir=tmp_path / "a", **changes)
    assert f" by vllm {VERSION}\n" in capsys.readouterr().err
    wanted = generate(outdir=tmp_path / "b", engine="transformers", **changes)
    assert contents(found).keys() == contents(wanted).keys()
    for file in sorted(wanted.glob("*/*.safetensors")):
        own, other = load_file(file), load_file(found / file.relative_to(wanted))
        assert own.keys() == other.keys()
        for name, value in own.items():
            assert value.dtype == other[name].dtype
            apart = (other[name] - value).float().norm(dim=-1) / value.float().norm(dim=-1)
            assert float(apart.max()) < (ROUNDING if value.is_floating_point() else 1e-9)


@pytest.mark.usefixtures("vllm")
def test_an_interrupted_run_goes_on_to_the_same_bytes_and_with_no_other_engine(generate, flags, capsys):
    folder = generate()
    whole = contents(folder)
    (folder / "0" / "data_3.safetensors").unlink()
    (folder / "0" / "data_5.safetensors").write_bytes(b"half")
    assert main(flags(engine="transformers")) == 2
    assert f"generation.json: engine: found vllm {VERSION}, expected transformers" in capsys.readouterr().err
    assert contents(generate()) == whole


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(("fault", "said"), zip(FAULTS, SAID, strict=True))
def test_states_that_vllm_gets_wrong_are_refused(flags, tmp_path, monkeypatch, capsys, fault, said):
    monkeypatch.setattr(Engine, "fault", fault)
    assert main(flags()) == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "records").rglob("*.safetensors"))


LACKING = {
    "llama": None,
    "gpt_oss": None,
    "llama4": None,
    "gemma3_text": "does not give the hidden states of Gemma3ForCausalLM",
    "olmo2": None,
    "deepseek_v3": "does not give the hidden states of DeepseekV3ForCausalLM",
}


@pytest.mark.parametrize("name", LACKING)
def test_classes_without_an_interface_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(interfaces, "installed", lambda: VERSION)
    found = lacks_states(config_of(name, tmp_path), 100)
    assert found == (LACKING[name] and f"vLLM {VERSION} {LACKING[name]}")


def test_dialogues_and_ropes_that_vllm_takes_otherwise_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(interfaces, "installed", lambda: VERSION)
    model = config_of("llama", tmp_path)
    assert lacks_states(model, SPEC.max_position_embeddings) is None
    assert lacks_states(model, 10**6) == "vLLM takes no more than the verifier's 512 positions"
    edit(tmp_path / "config.json", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert lacks_states(model, 100) == "vLLM turns early positions by another length"


def test_without_vllm_transformers_reads_and_says_why(generate, flags, monkeypatch, capsys):
    monkeypatch.setattr(interfaces, "installed", lambda: None)
    generate(samples=0)
    assert "bytes a token by transformers: vLLM is not installed\n" in capsys.readouterr().err
    assert main(flags(engine="vllm")) == 2
    assert "--engine: found vllm: vLLM is not installed, expected --engine transformers" in capsys.readouterr().err


@pytest.mark.usefixtures("vllm")
def test_a_copy_of_vllm_is_spread_over_the_devices_that_it_is_to_have(flags):
    settings = parse(GenerationSettings, flags(tensor_parallel=2))
    assert module._reader(settings, prepare(settings).manifest, 9)._engine.options["tensor_parallel_size"] == 2


@pytest.mark.usefixtures("vllm")
def test_a_device_or_several_processes_without_one_are_transformers(generate, capsys):
    generate(samples=1, device="cpu")
    assert "by transformers: --device is for transformers" in capsys.readouterr().err
