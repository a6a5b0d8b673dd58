"""Records by vLLM's own extraction: within what one rounding moves of transformers' states, on their own verifier."""

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from parity.fixtures.architectures import build_architecture
from parity.fixtures.conversations import SHAREGPT
from parity.pair import module_of
from ports.errors import InputError
from ports.generate.__main__ import main
from ports.verifier.states import Stored, check_states
from tests.needs import VLLM
from tests.ports.conftest import words_of
from tests.serving.conftest import ROOT

pytestmark = [VLLM, pytest.mark.usefixtures("serve")]

LAYERS = [5, 1, 3]
ROUNDING = {"float32": 1e-5, "bfloat16": 0.1}
"""Of the length of any row."""


def records(verifier, out, engine, dtype="float32"):
    """Of twelve dialogues; vLLM in a process of its own."""
    values = {"model_path": verifier, "outdir": out, "data_path": SHAREGPT, "dataset": "sharegpt", "samples": 11}
    words = words_of({**values, "engine": engine, "dtype": dtype, "aux_layers": "5,1,3", "no-progress": None})
    if engine == "transformers":
        assert main(words) == 0
    else:
        subprocess.run([sys.executable, "-m", "ports.generate", *words], check=True)
    return sorted(out.glob("*/*.safetensors"))


@pytest.fixture(scope="module")
def models():
    return module_of(str(ROOT / "examples" / "pairs" / "engine.py")).MODELS


READ = [
    ("llama", "float32"),
    ("qwen3", "float32"),
    ("qwen3", "bfloat16"),
    ("gpt_oss", "float32"),
    ("llama4", "float32"),
]


@pytest.mark.parametrize(("name", "dtype"), READ)
def test_records_are_those_of_transformers_within_rounding(models, name, dtype, tmp_path):
    verifier = build_architecture(models[name], tmp_path / "verifier")
    wanted = records(verifier, tmp_path / "a", "transformers", dtype)
    found = records(verifier, tmp_path / "b", "vllm", dtype)
    assert [file.name for file in found] == [file.name for file in wanted]
    stored = [Stored(file, load_file(file), LAYERS) for file in found]
    for each, file in zip(stored, wanted, strict=True):
        for field, value in load_file(file).items():
            apart = (each.record[field].double() - value.double()).norm(dim=-1) / value.double().norm(dim=-1)
            assert float(apart.max()) < (ROUNDING[dtype] if value.is_floating_point() else 1e-9)
    assert "held against the verifier: at most" in check_states(str(verifier), stored)


def test_a_bias_that_vllm_drops_is_refused_before_a_draft_is_trained(models, tmp_path):
    verifier = build_architecture(models["qwen3_biased"], tmp_path / "verifier")
    stored = [Stored(file, load_file(file), LAYERS) for file in records(verifier, tmp_path / "a", "vllm")]
    with pytest.raises(InputError, match=r"hidden_state: found entry 5 of hidden_states .* from the verifier's"):
        check_states(str(verifier), stored)
