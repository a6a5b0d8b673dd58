"""A checkpoint of the Eagle3 port in vLLM, as it lies: the verifier's own tokens, and proposals that can be recomputed.

The process that vLLM runs in is not this one. It runs in float32, so that greedy tokens repeat.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from speculators import SpeculatorModel

from fixtures.features import eagle3_features, hidden_states, load_verifier
from tests.serving.chain import Counts, count_accepted
from tests.serving.conftest import TTT_STEPS, Trained, run

pytestmark = pytest.mark.vllm

NUM_PROMPTS, LENGTH = 6, 48
ENGINE = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
BREAKS_VLLM = ("torchaudio", "torchcodec")


@pytest.fixture(scope="module")
def serve(trained: Trained, tmp_path_factory: pytest.TempPathFactory):
    """Start vLLM with the given arguments and let it answer the first prompts; gives tokens and counters."""
    for name in BREAKS_VLLM:
        _skip_if_broken(name)
    folder = tmp_path_factory.mktemp("vllm")

    def start(**engine: Any) -> dict[str, Any]:
        request, answer = folder / "request.json", folder / "answer.json"
        words = {"engine": {**ENGINE, **engine}, "prompts": trained.prompts[:NUM_PROMPTS], "length": LENGTH}
        request.write_text(json.dumps(words))
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), str(request), str(answer)]
        run(command, VLLM_CACHE_ROOT=str(folder / "cache"), **ENVIRONMENT)
        return json.loads(answer.read_text())

    return start


def _skip_if_broken(name: str) -> None:
    """vLLM's child processes import these two wherever they are installed, and stop if that fails."""
    if find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        pytest.skip(f"{name} is installed and cannot be loaded: pip uninstall {' '.join(BREAKS_VLLM)}")


@pytest.fixture(scope="module")
def plain(serve, trained):
    return serve(model=str(trained.verifier))


@pytest.fixture(scope="module")
def drafted(serve, trained):
    """Verifier and draft named apart. Without a method vLLM takes any path without "eagle3" for a whole model."""
    draft = {"method": "eagle3", "model": str(trained.draft), "num_speculative_tokens": TTT_STEPS}
    return serve(model=str(trained.verifier), speculative_config=draft)


@pytest.fixture(scope="module")
def named_by_the_draft(serve, trained):
    return serve(model=str(trained.draft))


def test_tokens_are_the_verifiers_own(plain, drafted, trained):
    assert plain["tokens"] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]
    assert drafted["tokens"] == plain["tokens"]
    assert "drafts" not in plain


def test_the_draft_alone_brings_its_verifier(named_by_the_draft, drafted):
    assert named_by_the_draft == drafted


def test_proposals_are_accepted_at_every_place(drafted):
    assert drafted["proposed"] == TTT_STEPS * drafted["drafts"]
    assert drafted["accepted"] == sum(drafted["accepted_per_position"])
    assert drafted["accepted_per_position"] == sorted(drafted["accepted_per_position"], reverse=True)
    assert drafted["accepted_per_position"][-1] > 0


def test_acceptance_is_that_of_drafting_in_plain_torch(drafted, trained):
    found = Counts(drafted["drafts"], drafted["accepted_per_position"])
    assert found == simulate(trained)


def test_features_of_one_layer_less_would_show(drafted, trained):
    """The planted fault: Speculators' own feature layers in place of those that the draft was trained on."""
    found = Counts(drafted["drafts"], drafted["accepted_per_position"])
    assert found != simulate(trained, features=lambda states: torch.cat([states[i] for i in (2, 4, 5)], dim=-1))


def simulate(trained: Trained, features=eagle3_features) -> Counts:
    """Greedy drafting with the same checkpoint on the verifier's answers, all prompts together."""
    model, _ = load_verifier(trained.verifier)
    draft: Any = SpeculatorModel.from_pretrained(trained.draft).eval()
    draft.config.transformer_layer_config._attn_implementation = "eager"
    parts = []
    for prompt, answer in list(zip(trained.prompts, trained.answers, strict=True))[:NUM_PROMPTS]:
        states = features(hidden_states(model, [*prompt, *answer]))
        parts.append(count_accepted(draft, states, prompt, answer, LENGTH, TTT_STEPS))
    accepted = [sum(places) for places in zip(*(part.accepted_per_position for part in parts), strict=True)]
    return Counts(sum(part.drafts for part in parts), accepted)
