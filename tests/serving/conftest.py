"""A verifier and a draft trained for it on the verifier's own answers, as a user of the port has them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixtures.features import eagle3_features, hidden_states, load_verifier
from fixtures.samples import build_training_fixture
from fixtures.verifier import VerifierSpec
from fixtures.vocabulary import most_frequent

ROOT = Path(__file__).parents[2]
SPEC = VerifierSpec(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=8)
DRAFT_VOCAB_SIZE = 384
NUM_SAMPLES, PROMPT, ANSWER = 12, 24, 64
TTT_STEPS = 3
LAST_EPOCH = 39
FLAGS = (
    *("--bs", "2", "--lr", "3e-3", "--forward_num_total", str(TTT_STEPS)),
    *("--ttt_alignment", "chain", "--num_workers", "0", "--no-noise", "--no-progress"),
)


@dataclass(frozen=True)
class Trained:
    """The folders that a server is pointed at, and what the verifier says after the prompts that were trained on."""

    verifier: Path
    draft: Path
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained until most of its proposals are right on the texts it has seen."""
    return train(tmp_path_factory.mktemp("trained"), LAST_EPOCH)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same after one pass."""
    return train(tmp_path_factory.mktemp("saved"), 0)


def train(folder: Path, last_epoch: int) -> Trained:
    sizes = {"num_samples": NUM_SAMPLES, "max_length": PROMPT, "draft_vocab_size": DRAFT_VOCAB_SIZE}
    fixture = build_training_fixture(folder / "fixture", spec=SPEC, **sizes)
    texts = answer_greedily(fixture)
    flags = [*inputs(fixture), "--cpdir", str(folder / "checkpoints"), "--epoch", str(last_epoch), *FLAGS]
    run([sys.executable, "-m", "ports.eagle3.train", *flags])
    prompts, answers = ([text[part] for text in texts] for part in (slice(PROMPT), slice(PROMPT, None)))
    return Trained(fixture / "verifier", folder / "checkpoints" / f"model{last_epoch}", prompts, answers)


def answer_greedily(fixture: Path) -> list[list[int]]:
    """Put samples with the verifier's own greedy answers in place of the cut conversations; returns their ids."""
    model, _ = load_verifier(fixture / "verifier")
    texts = []
    for file in sorted((fixture / "data_eagle3").iterdir()):
        prompt = torch.load(file, weights_only=True)["input_ids"]
        texts.append(continue_greedily(model, prompt.tolist(), ANSWER))
        torch.save(sample_of(model, texts[-1]), file)
    kept = most_frequent(texts, SPEC.vocab_size, DRAFT_VOCAB_SIZE)
    np.save(fixture / "t2d.npy", kept.t2d)
    np.save(fixture / "d2t.npy", kept.d2t)
    return texts


@torch.no_grad()
def continue_greedily(model: Any, ids: list[int], length: int) -> list[int]:
    """``ids`` and the ``length`` tokens that are likeliest after them, one by one; no token ends the text."""
    text = list(ids)
    for _ in range(length):
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text


def sample_of(model: Any, text: list[int]) -> dict[str, Tensor]:
    states = hidden_states(model, text)
    mask = torch.arange(len(text)) >= PROMPT
    ids = torch.tensor(text, dtype=torch.int64)
    return {
        "input_ids": ids,
        "hidden_state": eagle3_features(states),
        "loss_mask": mask.long(),
        "target": states[-1],
    }


def inputs(fixture: Path) -> list[str]:
    """The files of a training fixture as flags."""
    files = {"basepath": "verifier", "configpath": "draft_eagle3.json", "tmpdir": "data_eagle3"}
    files |= {"t2d": "t2d.npy", "d2t": "d2t.npy"}
    return [word for name, file in files.items() for word in (f"--{name}", str(fixture / file))]


def run(command: list[str], **environment: str) -> None:
    """Run a command of this project; what it said becomes the failure's message."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
