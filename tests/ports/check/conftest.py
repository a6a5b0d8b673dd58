"""A draft that was trained on a tiny verifier's own answers, for tests that break a copy of it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from parity.fixtures.architectures import ARCHITECTURES
from parity.fixtures.architectures.training import build_answers
from parity.fixtures.trainer import train_draft
from ports.eagle3 import train

PASSES = 6


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """verifier/, data_eagle3/, t2d.npy, d2t.npy and draft/; the trainer's command runs here."""
    folder = tmp_path_factory.mktemp("trained")
    data = build_answers(ARCHITECTURES["llama"], folder / "data")
    here = SimpleNamespace(run=lambda words, **_: SimpleNamespace(returncode=train.main(words[3:])), DEVNULL=None)
    with mock.patch("parity.fixtures.trainer.subprocess", here):
        draft = train_draft(data, folder / "run", "eagle3", "draft_eagle3_llama.json", PASSES, 3, quiet=True)
    shutil.copytree(draft, data / "draft", ignore=shutil.ignore_patterns("training*"))
    return data


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy that a test may break; the draft names the verifier of the copy."""
    data = Path(shutil.copytree(trained_once, tmp_path / "data"))
    config = data / "draft" / "config.json"
    config.write_text(config.read_text().replace(str(trained_once), str(data)))
    return data
