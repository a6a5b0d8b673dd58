"""A toy prototype in a checkout of its own, with hashes to match, and requests for it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parity.fixtures import FIXTURE
from parity.prototypes.original import OriginalRequest, checkout

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that holds the toy, which the hash table takes for the real prototype."""
    root = tmp_path / "checkout"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    real = checkout.PROTOTYPES["eagle3"]
    hashes = {name: hashlib.sha256((root / real.folder / name).read_bytes()).hexdigest() for name in real.hashes}
    monkeypatch.setitem(checkout.PROTOTYPES, "eagle3", replace(real, hashes=hashes))
    return root


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., OriginalRequest]:
    """Make a request on the recordings' fixture; keyword arguments change its fields."""

    def make(prototype: Path, **changes: object) -> OriginalRequest:
        fields = {"prototype": prototype, "fixture": FIXTURE, "output": tmp_path / "out", "case": "one"}
        return OriginalRequest(**{**fields, **changes})  # type: ignore[arg-type]

    return make
