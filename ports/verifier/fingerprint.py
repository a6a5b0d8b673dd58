"""How to know a verifier again: by everything that its answers and its hidden states come from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from xxhash import xxh3_128_hexdigest

from ports.files import read_json
from ports.progress import through
from ports.verifier.config import model_directory
from ports.verifier.tokenizer import tokenizer_files
from ports.verifier.trust import trusts_remote_code
from ports.verifier.weights import reading_weights, weight_files

CONFIGS = ("config.json", "generation_config.json")

NEUTRAL = frozenset({"transformers_version", "name_or_path", "use_cache", "output_attentions", "output_hidden_states"})
"""Entries that say nothing about the model: who wrote it down, and what a caller may ask for. So do those that begin
with an underscore."""

RENAMED = {"torch_dtype": "dtype"}
"""Older names, by which files written before are read."""

SETTLED = 2.0
"""Seconds after which a file that changes again has another time: no file system's clock is coarser."""


def verifier_fingerprint(name_or_path: str) -> str:
    """16 hex digits from config, generation config, tokenizer, chat template and every byte of the weights.

    And from code that lies beside them, where it is run. Neither shards matter, nor the order or layout of a JSON file.
    Weights are read once: what they digest to is kept in the user's cache by their place, size and times of change.

    Raises:
        InputError: no readable weights there, or a config that is none.
    """
    with reading_weights(name_or_path):
        tensors = _tensors(weight_files(name_or_path))
    directory = model_directory(name_or_path, CONFIGS)
    told = [directory / name for name in CONFIGS if (directory / name).is_file()]
    code = sorted(model_directory(name_or_path, ["*.py"]).glob("*.py")) if trusts_remote_code() else []
    words = {file.name: _content(file) for file in [*told, *tokenizer_files(name_or_path), *code]}
    return hashlib.sha256(json.dumps([tensors, words], sort_keys=True).encode()).hexdigest()[:16]


def _content(file: Path) -> Any:
    """A JSON file's values, without :data:`NEUTRAL`; of another file a digest."""
    if file.suffix != ".json":
        return xxh3_128_hexdigest(file.read_bytes())
    return _plain(read_json(file, "verifier", "a readable JSON file"))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    told = {key: each for key, each in value.items() if key not in NEUTRAL and not key.startswith("_")}
    kept = {RENAMED.get(key, key): _plain(each) for key, each in told.items()}
    if isinstance(kept.get("architectures"), list):
        kept["architectures"] = sorted(kept["architectures"], key=str)
    return kept


def _tensors(files: list[Path]) -> dict[str, str]:
    """Dtype, shape and digest of every tensor, by name."""
    found: dict[str, str] = {}
    for file in through(files, "digests of the verifier's weights"):
        found |= _cached(file)
    return found


def _cached(file: Path) -> dict[str, str]:
    """:func:`_digests`, from the cache if the file is as it was then."""
    place, about = file.resolve(), file.stat()
    seen = [str(place), about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    entry = cache_directory() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no cache, or one that is damaged
        kept = json.loads(entry.read_text(encoding="utf-8"))
        if kept["file"] == seen and kept["check"] == _check(kept["tensors"]):
            return {str(name): str(one) for name, one in kept["tensors"].items()}
    before, tensors = time.time(), _digests(file)
    if before - max(about.st_mtime, about.st_ctime) > SETTLED:
        with suppress(OSError):  # a home that is full or read-only: the weights are read again next time
            _write(entry, json.dumps({"file": seen, "tensors": tensors, "check": _check(tensors)}))
    return tensors


def _check(tensors: Any) -> str:
    return xxh3_128_hexdigest(json.dumps(tensors).encode())


def _digests(file: Path) -> dict[str, str]:
    """Dtype, shape and digest of every tensor; the file is mapped, one tensor after the other is read."""
    found = {}
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no iteration)
            entry, numbers = tensors.get_slice(name), tensors.get_tensor(name).flatten().view(torch.uint8)
            found[name] = f"{entry.get_dtype()} {entry.get_shape()} {xxh3_128_hexdigest(numbers.numpy())}"
    return found


def cache_directory() -> Path:
    """Where digests are kept: ``speculator/digests`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "speculator" / "digests"


def _write(file: Path, text: str) -> None:
    """Whole or not at all: several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as partial:
        partial.write(text)
    os.replace(partial.name, file)
