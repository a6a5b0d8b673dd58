"""The shipped recipe runs, from conversations to a checkpoint, on a verifier of toy size."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from parity.fixtures.conversations import SHAREGPT
from parity.fixtures.draft import eagle3_config, hass_config
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec, build_verifier

ROOT = Path(__file__).parents[2]
RUN = ROOT / "examples" / "llama_3_1_8b" / "run.sh"
SPEC = VerifierSpec(hidden_size=32, num_hidden_layers=7, intermediate_size=48)
DRAFTS = {"eagle3": eagle3_config(SPEC, 64), "hass": hass_config(SPEC)}


@pytest.fixture
def recipe(tmp_path, programs):
    """Runs run.sh with toy sizes in the current directory's place."""
    model = build_tokenizer(build_verifier(SPEC, tmp_path / "verifier"))
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MODEL": str(model),
        "GENERATE": "--samples 7 --no-progress",
        "TRAIN": "--epochs 2 --num-workers 0 --no-progress",
    }

    def go(algorithm, gpus="1", **changes):
        draft = tmp_path / f"draft_{algorithm}.json"
        draft.write_text(json.dumps(DRAFTS.get(algorithm, {})))
        command = ["bash", str(RUN), algorithm, gpus, str(SHAREGPT), str(tmp_path / "work")]
        variables = {**environment, "DRAFT": str(draft), **changes}
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    return go


@pytest.mark.parametrize(("algorithm", "last", "again"), [("eagle3", "model1", True), ("hass", "state_1", False)])
def test_from_conversations_to_a_checkpoint_and_again(recipe, tmp_path, algorithm, last, again):
    ended = recipe(algorithm)
    assert ended.returncode == 0, ended.stderr
    config = json.loads((tmp_path / "work" / "checkpoints" / last / "config.json").read_text())
    assert config["speculators_model_type"] == algorithm
    written = (tmp_path / "work" / "checkpoints" / last / "model.safetensors").stat().st_mtime_ns
    assert not again or recipe(algorithm).returncode == 0
    assert (tmp_path / "work" / "checkpoints" / last / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("words", "said"), [(("medusa", "1"), "expected eagle3 or hass"), (("hass", "3"), "expected 1, 2")]
)
def test_bad_words_are_refused(recipe, words, said):
    ended = recipe(*words)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_stage_that_fails_ends_the_recipe(recipe, tmp_path):
    assert recipe("eagle3", GENERATE="--samples -1").returncode == 2
    assert not (tmp_path / "work" / "checkpoints").exists()
