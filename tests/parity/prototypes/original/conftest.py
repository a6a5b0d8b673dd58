"""A toy prototype in a checkout of its own, with hashes to match, and cases for it."""

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parity.fixtures import FIXTURE
from parity.prototypes.original import checkout
from parity.prototypes.synthetic import write_case

TOY = Path(__file__).parent / "toy"
H = 64
"""Hidden size of the recordings' fixture."""


@pytest.fixture
def toy(tmp_path, programs, monkeypatch):
    """A checkout that holds the toy, which the hash table takes for the real prototype; forks run it."""
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    root = tmp_path / "checkout"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    real = checkout.PROTOTYPES["eagle3"]
    hashes = {name: hashlib.sha256((root / real.folder / name).read_bytes()).hexdigest() for name in real.hashes}
    monkeypatch.setitem(checkout.PROTOTYPES, "eagle3", replace(real, hashes=hashes))
    return root


@pytest.fixture
def toy_case(tmp_path):
    """Makes cases that the toy can run: the recordings' fixture, and weights for its two layers."""
    weights = tmp_path / "start.safetensors"
    save_file({"init.fc.weight": torch.full((H, 3 * H), 1e-3), "init.mix.weight": torch.eye(H)}, weights)
    return lambda name="one", **flags: write_case(
        tmp_path / "cases", FIXTURE, name, **{"initial": weights, "epoch": 0, **flags}
    )
