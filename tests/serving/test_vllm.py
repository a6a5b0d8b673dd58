"""Checkpoints of both ports in vLLM, as they lie: the verifier's own tokens, and acceptance as the evaluator counts it.

The process that vLLM runs in is not this one. It runs in float32, so that greedy tokens repeat.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from ports.evaluate.counters import Counters
from ports.evaluate.decode import Limits
from ports.evaluate.drafter import Eagle3Drafter
from ports.evaluate.drafts import drafter_of, open_draft, untrained
from ports.evaluate.evaluation import evaluate
from ports.evaluate.verifiers import open_verifier
from ports.serving.layout import write_folded
from ports.training.saving import save_draft
from tests.serving.conftest import TTT_STEPS, Trained, run

pytestmark = pytest.mark.vllm

NUM_PROMPTS, LENGTH = 6, 48
METHODS = {"eagle3": "eagle3", "hass": "eagle"}
ENGINE = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
BREAKS_VLLM = ("torchaudio", "torchcodec")

Serve = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def serve(texts, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Start vLLM with the given arguments and let it answer the first prompts; gives tokens and counters."""
    for name in BREAKS_VLLM:
        _skip_if_broken(name)
    folder = tmp_path_factory.mktemp("vllm")

    def start(prompts: list[list[int]], **engine: Any) -> dict[str, Any]:
        request, answer = folder / "request.json", folder / "answer.json"
        words = {"engine": {**ENGINE, **engine}, "prompts": prompts[:NUM_PROMPTS], "length": LENGTH}
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


def drafted(serve: Serve, trained: Trained, draft: Path) -> dict[str, Any]:
    """Verifier and draft named apart. Without a method vLLM takes any path without "eagle3" for a whole model."""
    speculative = {"method": METHODS[trained.kind], "model": str(draft), "num_speculative_tokens": TTT_STEPS}
    return serve(trained.prompts, model=str(trained.verifier), speculative_config=speculative)


def counted(served: dict[str, Any]) -> Counters:
    return Counters(served["drafts"], tuple(served["accepted_per_position"]))


def evaluated(trained: Trained, draft: Path, drafter=drafter_of) -> Counters:
    """What our own evaluation counts."""
    verifier = open_verifier(str(trained.verifier), "float32", torch.device("cpu"))
    prompts, limits = trained.prompts[:NUM_PROMPTS], Limits(LENGTH)
    return evaluate(verifier, drafter(open_draft(draft)), prompts, limits, TTT_STEPS).counters


@pytest.fixture(scope="module")
def plain(serve, texts):
    fixture, ids = texts
    return serve([text[:24] for text in ids], model=str(fixture / "verifier"))


@pytest.fixture(scope="module")
def served(serve, trained):
    return drafted(serve, trained, trained.draft)


def test_tokens_are_the_verifiers_own(plain, served, trained):
    assert plain["tokens"] == [answer[:LENGTH] for answer in trained.answers[:NUM_PROMPTS]]
    assert served["tokens"] == plain["tokens"]
    assert "drafts" not in plain


def test_proposals_are_accepted_at_every_place(served):
    assert served["proposed"] == TTT_STEPS * served["drafts"]
    assert served["accepted"] == sum(served["accepted_per_position"])
    assert served["accepted_per_position"] == sorted(served["accepted_per_position"], reverse=True)
    assert served["accepted_per_position"][-1] > 0


def test_acceptance_is_what_the_evaluator_counts(served, trained):
    assert counted(served) == evaluated(trained, trained.draft)


def test_an_untrained_draft_is_served_and_counted_alike(serve, plain, trained, tmp_path):
    draft = save_draft(untrained(open_draft(trained.draft)), tmp_path / "untrained")
    found = drafted(serve, trained, draft)
    assert found["tokens"] == plain["tokens"]
    assert counted(found) == evaluated(trained, draft)


def test_the_eagle3_draft_alone_brings_its_verifier(serve, served, trained):
    if trained.kind != "eagle3":
        pytest.skip("vLLM 0.32 starts a draft alone only if its type is one of vLLM's own: name verifier and draft")
    assert serve(trained.prompts, model=str(trained.draft)) == served


def test_features_of_one_layer_less_would_show(served, trained):
    """The planted fault: Speculators' own feature layers in place of those that the draft was trained on."""
    if trained.kind != "eagle3":
        pytest.skip("a HASS draft reads the last layer alone")

    class Shifted(Eagle3Drafter):
        def features(self, states):
            return torch.cat([states[layer] for layer in (2, 4, 5)], dim=-1)

    assert counted(served) != evaluated(trained, trained.draft, Shifted)


def test_a_folded_hass_draft_counts_the_same(serve, served, trained, tmp_path):
    if trained.kind != "hass":
        pytest.skip("folding is for HASS drafts")
    folded = write_folded(open_draft(trained.draft), tmp_path / "folded")
    assert drafted(serve, trained, folded) == served
