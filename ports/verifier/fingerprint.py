"""How to know a verifier again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from ports.errors import InputError
from ports.files import check_regular
from ports.verifier.config import model_directory
from ports.verifier.weights import reading_weights

SAMPLE = 256
"""Bytes that a fingerprint reads at the start, in the middle and at the end of every tensor."""


def verifier_fingerprint(name_or_path: str) -> str:
    """16 hex digits from every tensor's name, dtype, shape and a sample of its bytes; shards do not matter.

    Raises:
        InputError: no readable safetensors there.
    """
    with reading_weights(name_or_path):
        files = sorted(model_directory(name_or_path, ["*.safetensors", "*.json"]).glob("*.safetensors"))
        for file in files:
            check_regular(file, "weights")
        tensors = dict(entry for file in files for entry in _tensors(file))
    if not tensors:
        raise InputError(name_or_path, "weights", "no *.safetensors", "a verifier's weights")
    digest = hashlib.sha256()
    for name, content in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _tensors(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every tensor's name, and what is known of it; the file is mapped, so that only samples are read."""
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no iteration)
            entry, numbers = tensors.get_slice(name), tensors.get_tensor(name).flatten().view(torch.uint8)
            middle = len(numbers) // 2
            places = (slice(SAMPLE), slice(middle, middle + SAMPLE), slice(-SAMPLE, None))
            sample = b"".join(numbers[place].numpy().tobytes() for place in places)
            whole = numbers.numpy().tobytes() if len(numbers) <= 3 * SAMPLE else sample
            yield name, f"{entry.get_dtype()}\0{entry.get_shape()}\0".encode() + whole
