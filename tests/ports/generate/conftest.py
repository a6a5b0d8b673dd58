"""A tiny verifier with a tokenizer, and commands that make records with it."""

import multiprocessing
import shutil
from pathlib import Path

import pytest

from parity.fixtures.conversations import SHAREGPT
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec, build_verifier
from ports.generate.__main__ import main
from tests.ports.conftest import words_of

SPEC = VerifierSpec(hidden_size=32, num_hidden_layers=7, intermediate_size=48, seed=3)


@pytest.fixture(scope="session")
def verifier_once(tmp_path_factory):
    return build_tokenizer(build_verifier(SPEC, tmp_path_factory.mktemp("verifier") / "verifier"))


@pytest.fixture
def verifier(verifier_once, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(verifier_once, tmp_path / "verifier"))


@pytest.fixture
def flags(verifier, tmp_path):
    """A command line on the shipped ShareGPT dialogues, some of its flags changed; False leaves one out."""
    values = {
        "model_path": verifier,
        "outdir": tmp_path / "records",
        "data_path": SHAREGPT,
        "dataset": "sharegpt",
        "chat_template": "plain",
        "samples": 7,
        "batch_tokens": 400,
        "no-progress": None,
    }

    return lambda **changes: words_of({**values, **changes})


@pytest.fixture
def generate(flags, tmp_path):
    """Runs the command in this process; it must end well."""

    def go(**changes):
        assert main(flags(**changes)) == 0
        return changes.get("outdir", tmp_path / "records")

    return go


@pytest.fixture
def spawn(flags, fork):
    """Starts the command as a process of its own, and its processes too."""
    return lambda **changes: fork(forking, main, flags(**changes))


def forking(entry, argv):
    """An entry point whose processes are forked, which spares them the imports."""
    forks = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method: forks
    return entry(argv)


def contents(folder):
    """Every file below ``folder``, locks left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
