"""A verifier and drafts trained for it on the verifier's own answers, as a user of the ports has them."""

import importlib
import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from parity.fixtures.architectures.training import PROMPT, answered
from parity.fixtures.features import load_verifier
from parity.fixtures.samples import build_training_fixture, sample_of, write_samples
from parity.fixtures.trainer import train_draft
from parity.fixtures.verifier import VerifierSpec
from ports.evaluate.acceptance import Counters, count
from ports.evaluate.decode import Limits
from ports.evaluate.drafter import drafter_of, open_draft
from ports.evaluate.measure import evaluate
from ports.serving.bench import start_engine
from ports.verifier import loading
from ports.verifier.interfaces import METHODS

ROOT = Path(__file__).parents[2]
SPEC = VerifierSpec(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=8)
DRAFT_VOCAB_SIZE, NUM_SAMPLES = 384, 12
PASSES, TTT_STEPS = 40, 3
NUM_PROMPTS, LENGTH = 6, 48
ENGINE = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
CORE = str(min(os.sched_getaffinity(0)))
"""Several threads wait for each other where cores are busy."""

BREAKS_VLLM = ("torchaudio", "torchcodec")


@dataclass(frozen=True)
class Trained:
    """The folders that a server is pointed at, and what the verifier says after the prompts that were trained on."""

    kind: str
    verifier: Path
    draft: Path
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A training fixture of the verifier's own answers in place of cut conversations, and the ids of its samples."""
    sizes = {"num_samples": NUM_SAMPLES, "max_length": PROMPT, "draft_vocab_size": DRAFT_VOCAB_SIZE}
    fixture = build_training_fixture(tmp_path_factory.mktemp("texts") / "fixture", spec=SPEC, **sizes)
    model, _ = load_verifier(fixture / "verifier")
    files = sorted((fixture / "data_eagle3").iterdir())
    ids = [answered(model, torch.load(file, weights_only=True)["input_ids"].tolist()) for file in files]
    samples = [sample_of(model, text, [int(place >= PROMPT) for place in range(len(text))]) for text in ids]
    for name in ("data_eagle3", "data_hass"):
        shutil.rmtree(fixture / name)
    write_samples(fixture, samples, SPEC.vocab_size, DRAFT_VOCAB_SIZE)
    return fixture, ids


@pytest.fixture(scope="session", params=METHODS)
def trained(request, texts, tmp_path_factory):
    """Trained until most of its proposals are right on the texts it has seen."""
    return train(request.param, texts, tmp_path_factory.mktemp("trained"))


def train(kind, texts, folder, config=None):
    fixture, ids = texts
    draft = train_draft(fixture, folder / "checkpoints", kind, config or f"draft_{kind}.json", PASSES, TTT_STEPS)
    prompts, answers = ([text[part] for text in ids] for part in (slice(PROMPT), slice(PROMPT, None)))
    return Trained(kind, fixture / "verifier", draft, prompts, answers)


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """Start vLLM with the given arguments and let it answer the first prompts; gives tokens and counters."""
    for name in BREAKS_VLLM:
        _skip_if_broken(name)

    def start(prompts, **engine):
        request = {"engine": {**ENGINE, **engine}, "prompts": prompts[:NUM_PROMPTS], "length": LENGTH}
        (found,) = start_engine({**request, "ignore_eos": True}, CORE)
        return {name: value for name, value in found.items() if not name.endswith(("seconds", "took"))}

    places = {"PYTHONPATH": str(ROOT), "VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm"))}
    sizes = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**places, **sizes, "TRANSFORMERS_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        yield start


def _skip_if_broken(name):
    """vLLM's child processes import these two wherever they are installed, and stop if that fails."""
    if find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        pytest.skip(f"{name} is installed and cannot be loaded: pip uninstall {' '.join(BREAKS_VLLM)}")


def drafted(serve, trained, draft, **engine):
    """Verifier and draft named apart. Without a method vLLM takes any path without "eagle3" for a whole model."""
    speculative = {"method": METHODS[trained.kind], "model": str(draft), "num_speculative_tokens": TTT_STEPS}
    return serve(trained.prompts, model=str(trained.verifier), speculative_config=speculative, **engine)


def counted(served):
    return Counters(served["drafts"], tuple(served["accepted_per_position"]))


def evaluated(trained, draft, drafter=drafter_of):
    """What our own evaluation counts."""
    verifier = loading.load_verifier(str(trained.verifier), "float32", torch.device("cpu"), head=True)
    prompts, limits = trained.prompts[:NUM_PROMPTS], Limits(LENGTH)
    return count(evaluate(verifier, drafter(open_draft(draft)), prompts, limits, TTT_STEPS), TTT_STEPS)
