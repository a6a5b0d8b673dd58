"""A verifier and drafts trained for it on the verifier's own answers, as a user of the ports has them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.fixtures.features import load_verifier
from parity.fixtures.samples import as_hass, build_training_fixture, sample_of, write_vocabulary
from parity.fixtures.verifier import VerifierSpec
from ports.evaluate.decode import Limits
from ports.evaluate.drafter import Drafter, drafter_of, open_draft
from ports.evaluate.measure import Counters, evaluate
from ports.evaluate.verifier import open_verifier
from tests.ports.evaluate.plain import continue_greedily

ROOT = Path(__file__).parents[2]
SPEC = VerifierSpec(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=8)
DRAFT_VOCAB_SIZE = 384
NUM_SAMPLES, PROMPT, ANSWER = 12, 24, 64
CHECKPOINTS = {"eagle3": "model", "hass": "state_"}
KINDS = tuple(CHECKPOINTS)
TTT_STEPS = 3
LAST_EPOCH = 39
FLAGS = (
    *("--bs", "2", "--lr", "3e-3", "--forward_num_total", str(TTT_STEPS)),
    *("--ttt_alignment", "chain", "--num_workers", "0", "--no-noise", "--no-progress"),
)
NUM_PROMPTS, LENGTH = 6, 48
METHODS = {"eagle3": "eagle3", "hass": "eagle"}
ENGINE = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "disable_log_stats": False, "seed": 0}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",  # several threads wait for each other where cores are busy
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
BREAKS_VLLM = ("torchaudio", "torchcodec")

Serve = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """The folders that a server is pointed at, and what the verifier says after the prompts that were trained on."""

    kind: str
    verifier: Path
    draft: Path
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A training fixture of the verifier's own answers, and the ids of its samples."""
    sizes = {"num_samples": NUM_SAMPLES, "max_length": PROMPT, "draft_vocab_size": DRAFT_VOCAB_SIZE}
    fixture = build_training_fixture(tmp_path_factory.mktemp("texts") / "fixture", spec=SPEC, **sizes)
    return fixture, answer_greedily(fixture)


@pytest.fixture(scope="session", params=KINDS)
def trained(request: pytest.FixtureRequest, texts, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained until most of its proposals are right on the texts it has seen."""
    return train(request.param, texts, tmp_path_factory.mktemp("trained"), LAST_EPOCH)


@pytest.fixture(scope="session")
def saved(texts, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An Eagle3 draft after one pass."""
    return train("eagle3", texts, tmp_path_factory.mktemp("saved"), 0)


def train(
    kind: str, texts: tuple[Path, list[list[int]]], folder: Path, last_epoch: int, config: str | None = None
) -> Trained:
    fixture, ids = texts
    flags = [*inputs(fixture, kind, config), "--cpdir", str(folder / "checkpoints"), "--epoch", str(last_epoch), *FLAGS]
    run([sys.executable, "-m", f"ports.{kind}.train", *flags])
    prompts, answers = ([text[part] for text in ids] for part in (slice(PROMPT), slice(PROMPT, None)))
    draft = folder / "checkpoints" / f"{CHECKPOINTS[kind]}{last_epoch}"
    return Trained(kind, fixture / "verifier", draft, prompts, answers)


def answer_greedily(fixture: Path) -> list[list[int]]:
    """Put samples with the verifier's own greedy answers in place of the cut conversations; returns their ids."""
    model, _ = load_verifier(fixture / "verifier")
    texts = []
    for file in sorted((fixture / "data_eagle3").iterdir()):
        prompt = torch.load(file, weights_only=True)["input_ids"]
        texts.append([*prompt.tolist(), *continue_greedily(model, prompt.tolist(), ANSWER)])
        sample = sample_of(model, texts[-1], [int(place >= PROMPT) for place in range(len(texts[-1]))])
        torch.save(sample, file)
        torch.save(as_hass(sample), fixture / "data_hass" / file.name)
    write_vocabulary(fixture, texts, SPEC.vocab_size, DRAFT_VOCAB_SIZE)
    return texts


def inputs(fixture: Path, kind: str, config: str | None = None) -> list[str]:
    """The files of a training fixture as flags."""
    files = {"basepath": "verifier", "configpath": config or f"draft_{kind}.json", "tmpdir": f"data_{kind}"}
    if kind == "eagle3":
        files |= {"t2d": "t2d.npy", "d2t": "d2t.npy"}
    return [word for name, file in files.items() for word in (f"--{name}", str(fixture / file))]


def run(command: list[str], **environment: str) -> None:
    """Run a command of this project; what it said becomes the failure's message."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Start vLLM with the given arguments and let it answer the first prompts; gives tokens and counters."""
    for name in BREAKS_VLLM:
        _skip_if_broken(name)
    folder = tmp_path_factory.mktemp("vllm")

    def start(prompts: list[list[int]], **engine: Any) -> dict[str, Any]:
        request, answer = folder / "request.json", folder / "answer.json"
        words = {"engine": {**ENGINE, **engine}, "prompts": prompts[:NUM_PROMPTS], "length": LENGTH, "ignore_eos": True}
        request.write_text(json.dumps(words))
        command = [sys.executable, "-m", "ports.serving.engine", str(request), str(answer), str(os.getpid())]
        run(command, VLLM_CACHE_ROOT=str(folder / "cache"), **ENVIRONMENT)
        (found,) = json.loads(answer.read_text())
        return {name: value for name, value in found.items() if not name.endswith("seconds")}

    return start


def _skip_if_broken(name: str) -> None:
    """vLLM's child processes import these two wherever they are installed, and stop if that fails."""
    if find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        pytest.skip(f"{name} is installed and cannot be loaded: pip uninstall {' '.join(BREAKS_VLLM)}")


def drafted(serve: Serve, trained: Trained, draft: Path, **engine: Any) -> dict[str, Any]:
    """Verifier and draft named apart. Without a method vLLM takes any path without "eagle3" for a whole model."""
    speculative = {"method": METHODS[trained.kind], "model": str(draft), "num_speculative_tokens": TTT_STEPS}
    return serve(trained.prompts, model=str(trained.verifier), speculative_config=speculative, **engine)


def counted(served: dict[str, Any]) -> Counters:
    return Counters(served["drafts"], tuple(served["accepted_per_position"]))


def evaluated(trained: Trained, draft: Path, drafter: Callable[[Any], Drafter] = drafter_of) -> Counters:
    """What our own evaluation counts."""
    verifier = open_verifier(str(trained.verifier), "float32", torch.device("cpu"))
    prompts, limits = trained.prompts[:NUM_PROMPTS], Limits(LENGTH)
    return evaluate(verifier, drafter(open_draft(draft)), prompts, limits, TTT_STEPS).counters
