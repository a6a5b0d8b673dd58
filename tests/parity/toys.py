"""Toy originals in checkouts of their own: the project's formulas under the originals' names, with hashes to match."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from parity.prototypes.others import checkout

TOY = Path(__file__).parent / "prototypes" / "others" / "toy"


def copy_toys(root: Path) -> dict[str, Path]:
    """Both toys below ``root``, by the originals' names."""
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    return {name: root / name for name in checkout.OTHERS}


def seal(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files at ``root`` for those of the commit."""
    other = checkout.OTHERS[name]
    files = {file: (root / other.folder / file).read_bytes() for file in other.hashes}
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(checkout.OTHERS, name, replace(other, hashes=hashes))
