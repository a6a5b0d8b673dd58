"""A tiny verifier with samples, drafts for it, and what every error message must say."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fixtures.samples import build_random_fixture
from fixtures.verifier import VerifierSpec
from ports.eagle3 import train as eagle3
from ports.eagle3.settings import Eagle3Settings
from ports.errors import InputError
from ports.training.data.batches import collate

ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SPEC = VerifierSpec(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    num_hidden_layers=8,
    intermediate_size=48,
    vocab_size=61,
    rope_scaling=ROPE,
    bos_token_id=1,
    eos_token_id=2,
)
LENGTHS = (9, 5, 12, 7, 3, 10)
DRAFT_VOCAB_SIZE = 23


@pytest.fixture(scope="session")
def built_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "fixture"
    return build_random_fixture(folder, spec=SPEC, lengths=LENGTHS, draft_vocab_size=DRAFT_VOCAB_SIZE)


@pytest.fixture
def fixture(built_once, tmp_path) -> Path:
    """verifier/, draft_eagle3.json, data_eagle3/, t2d.npy, d2t.npy: a copy that a test may break."""
    return Path(shutil.copytree(built_once, tmp_path / "fixture"))


@pytest.fixture
def settings(fixture, tmp_path):
    """Eagle3 settings for the fixture: float32, two samples a batch, natural order, no noise; a fresh start each."""

    def make(**changes) -> Eagle3Settings:
        values = {
            "basepath": str(fixture / "verifier"),
            "configpath": str(fixture / "draft_eagle3.json"),
            "tmpdir": fixture / "data_eagle3",
            "cpdir": tmp_path / "checkpoints",
            "t2d": fixture / "t2d.npy",
            "d2t": fixture / "d2t.npy",
            "bs": 2,
            "lr": 1e-3,
            "epoch": 0,
            "noise": False,
            "shuffle": False,
            "num_workers": 0,
            "mixed_precision": "no",
            "progress": False,
            "overwrite": "ckpt_path" not in changes,
        }
        return Eagle3Settings(**{**values, **changes})

    return make


@pytest.fixture
def flags(fixture, tmp_path):
    """The same as a command line."""
    values = {
        "basepath": fixture / "verifier",
        "configpath": fixture / "draft_eagle3.json",
        "tmpdir": fixture / "data_eagle3",
        "cpdir": tmp_path / "checkpoints",
        "t2d": fixture / "t2d.npy",
        "d2t": fixture / "d2t.npy",
        "bs": 2,
        "num_workers": 0,
        "epoch": 0,
        "no-progress": None,
    }

    def make(**changes) -> list[str]:
        pairs = {**values, **changes}
        return [
            word for name, value in pairs.items() for word in ([f"--{name}"] + ([] if value is None else [str(value)]))
        ]

    return make


@pytest.fixture
def lively_draft(settings):
    """A draft whose weights are far from their initial state, so that every term shows in its logits."""

    def make(seed: int = 0, **changes):
        draft = eagle3.build(settings(**changes))
        return enliven(draft, seed)

    return make


@torch.no_grad()
def enliven(draft, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(draft.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1
            parameter.copy_(1 + 0.3 * noise if is_norm else noise / parameter.shape[1] ** 0.5)
    return draft


@pytest.fixture
def batch_of(settings):
    """The given samples of the fixture, padded to a batch."""

    def make(*indices: int, **changes):
        chosen = settings(**changes)
        dataset = eagle3.build_dataset(chosen, eagle3.build(chosen).config)
        return collate([dataset[index] for index in indices])

    return make


@dataclass
class Refusal:
    error: InputError | None = None


@pytest.fixture
def refuses():
    """``with refuses(file, field, found, expected):`` the block must raise an InputError that names all four."""

    @contextmanager
    def expect(file, field: str, found: str, expected: str):
        refusal = Refusal()
        with pytest.raises(InputError) as caught:
            yield refusal
        refusal.error = caught.value
        message = str(caught.value)
        head, _, tail = message.partition(": found ")
        assert str(file) in head, message
        assert head.endswith(f": {field}"), message
        said_found, _, said_expected = tail.rpartition(", expected ")
        assert found in said_found, message
        assert expected in said_expected or expected in tail.partition(", expected ")[2], message

    return expect


@pytest.fixture(autouse=True)
def reset_accelerator():
    """Accelerate keeps its state in the process and in the environment; call this between two runs in one test."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    before = dict(os.environ)
    yield reset
    reset()
    os.environ.clear()
    os.environ.update(before)
