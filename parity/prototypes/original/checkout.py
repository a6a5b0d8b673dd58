"""Where the prototypes lie in a checkout of vllm-project/speculators, and whether they are the ones measured here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from parity.errors import InputError

COMMIT = "227b8a1b4bd4c9afb5cebd8cdd1612a71f4bd29d"
CHECKOUT = f"a checkout of vllm-project/speculators at {COMMIT}"
_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass(frozen=True)
class Prototype:
    """One research prototype: its folder in the checkout, the modules a run replaces, the SHA-256 of each file."""

    folder: str
    script: str
    model: str
    hashes: dict[str, str]


PROTOTYPES = {
    "eagle3": Prototype(
        folder="research/eagle3",
        script="train.main_train_full_gradient_calc_eagle3",
        model="model.llama_eagle3_full_grad",
        hashes={
            "train/__init__.py": _EMPTY,
            "train/main_train_full_gradient_calc_eagle3.py": (
                "16de53f4ddcb7e67bec0e9a59684d6bce186f2d74ddb1532888685caee61fca6"
            ),
            "model/__init__.py": _EMPTY,
            "model/configs.py": "b1e71d4b80c43f5cc8c5a352b1e8c55c463e1843079b55766b0adc0405e482d7",
            "model/llama_eagle3_full_grad.py": "d9b2f8a7141cbd739cb0a2c2e630dbe18e821011d47225ea58cec63e4adb34b9",
            "model/modeling_llama_TTT_eagle3.py": "087bf4788c5943ab3b406b17b91d4efc78a0250c55f9b5ed9ba77129ca7fce65",
        },
    ),
    "hass": Prototype(
        folder="research/hass",
        script="train.main_train_full_gradient_calc",
        model="model.llama_eagle_full_grad",
        hashes={
            "train/__init__.py": _EMPTY,
            "train/main_train_full_gradient_calc.py": (
                "359ed12949c5a05dbdc373182bd633e253af215a8434867df8fbc65fb2da4d7d"
            ),
            "model/__init__.py": _EMPTY,
            "model/configs.py": "26f5b6c3bff99aa30c33eea7a58b1ed4dbb2110bb36ffc8206c5f28a5ded6abb",
            "model/llama_eagle_full_grad.py": "666febd70715d6a83d253eea62b54d762b855c06ea9b41d7069d2fe59d588063",
            "model/modeling_llama_TTT.py": "d919a2d810b56c3552eaabd6bc2b02e80071e4ca9b1d3614bf35ce21ff46d864",
            "model/utils_c.py": "2d8132b27ac034d0b48178e966118455806f242be9235dade52950255fbb5010",
        },
    ),
}


def verify(root: Path, algorithm: str) -> list[str]:
    """A line for every file of a run that is not as in :data:`COMMIT`, with both SHA-256.

    Raises:
        InputError: a folder or file that is missing.
    """
    prototype = PROTOTYPES[algorithm]
    if not (root / prototype.folder).is_dir():
        raise InputError(root, prototype.folder, "no such folder", CHECKOUT)
    found = {name: _sha256(root / prototype.folder / name) for name in prototype.hashes}
    return [
        f"{prototype.folder}/{name}: found {found[name]}, expected {wanted}"
        for name, wanted in prototype.hashes.items()
        if found[name] != wanted
    ]


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise InputError(path, "file", "missing", CHECKOUT)
    return hashlib.sha256(path.read_bytes()).hexdigest()
