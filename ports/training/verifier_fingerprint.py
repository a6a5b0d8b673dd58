"""Recognise a verifier and a tokenizer by what they hold, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import snapshot_download

from ports.errors import InputError
from ports.files import check_regular

SAMPLE = 256
"""Bytes read at the start, in the middle and at the end of every tensor."""

LARGEST_HEADER = 100 << 20
PROBE = "Hello, world!\n\n  x = 3.14; é漢🙂 <|eot_id|>"


def verifier_fingerprint(name_or_path: str) -> str:
    """16 hex digits from every tensor's name, dtype, shape and a sample of its bytes; shards do not matter.

    Raises:
        InputError: no readable safetensors there.
    """
    directory = _directory(name_or_path)
    files = sorted(directory.glob("*.safetensors"))
    for file in files:
        check_regular(file, "weights")
    try:
        tensors = dict(entry for file in files for entry in _tensors(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise InputError(directory, "weights", str(error)[:200], "whole safetensors") from error
    if not tensors:
        raise InputError(directory, "weights", "no *.safetensors", "a verifier's weights")
    digest = hashlib.sha256()
    for name, content in sorted(tensors.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _directory(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(name_or_path, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # the hub's own, requests' and the file system's
        reason = " ".join(str(error).split())[:200]
        raise InputError(name_or_path, "weights", reason, "a model directory or hub id") from error


def _tensors(file: Path) -> Iterator[tuple[str, bytes]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > LARGEST_HEADER:
            raise ValueError(f"{file.name} has a header of {length} bytes")
        header: dict[str, Any] = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                kind = f"{entry['dtype']}\0{entry['shape']}\0".encode()
                yield name, kind + _sample(stream, 8 + length + start, 8 + length + stop)


def _sample(stream: BinaryIO, start: int, stop: int) -> bytes:
    if stop - start <= 3 * SAMPLE:
        places = [(start, stop - start)]
    else:
        places = [(at, SAMPLE) for at in (start, (start + stop) // 2, stop - SAMPLE)]
    pieces = []
    for at, size in places:
        stream.seek(at)
        pieces.append(stream.read(size))
    return b"".join(pieces)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits from vocabulary, special tokens, chat template and how a fixed text is split."""
    content = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "probe": tokenizer(PROBE)["input_ids"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
