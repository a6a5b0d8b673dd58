"""Drafts of both kinds with lively weights, saved beside their tiny verifier, and prompts of different lengths."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.fixtures.features import hidden_states
from ports.evaluate.drafter import drafter_of, open_draft
from ports.training.saving import save_draft
from ports.verifier.loading import load_verifier
from tests.commands import main_of
from tests.ports.conftest import TRAIN, enliven, settings_of

main = main_of("evaluate")


@dataclass
class Pair:
    """A checkpoint, the verifier that it names, and both models."""

    directory: Path
    verifier: Path
    draft: Any
    judge: Any

    @property
    def drafter(self):
        return drafter_of(self.draft)

    def states(self, text):
        return hidden_states(self.judge, text)


@pytest.fixture(params=["eagle3", "hass"])
def build(request, fixture, tmp_path):
    """Builds a draft of either kind, with changed settings."""

    def make(**changes):
        values = {"cpdir": tmp_path / "checkpoints", "forward_num_total": 3, **changes}
        return TRAIN[request.param][0].build(settings_of(fixture, request.param, **values))

    return make


@pytest.fixture
def cpu():
    return torch.device("cpu")


@pytest.fixture
def pair(build, fixture, tmp_path, cpu):
    directory, verifier = save_draft(enliven(build()), tmp_path / "draft"), fixture / "verifier"
    return Pair(directory, verifier, open_draft(directory), load_verifier(str(verifier), "float32", cpu, head=True))


@pytest.fixture
def prompts(fixture):
    """The ids of the fixture's records: 9, 5, 12, 7, 3 and 10 tokens."""
    files = sorted((fixture / "data_eagle3").iterdir())
    return [torch.load(file, weights_only=True)["input_ids"].tolist() for file in files]


@pytest.fixture
def command(pair, prompts, tmp_path, run_app, capsys):
    """Runs the command here; gives exit code, JSON result and what was printed."""
    file, answer = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    file.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))

    def run(*words):
        code = run_app(main, pair.directory, "--prompts", file, "--json", answer, *words)
        return code, json.loads(answer.read_text()) if answer.exists() else {}, capsys.readouterr()

    return run
