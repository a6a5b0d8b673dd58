"""Digests as earlier releases made them, whose checkpoints must resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from parity.compare import Subject, compare_value
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.port import settings_for
from parity.verdict import Row
from ports.training.checkpoint.fingerprint import fingerprint, records_digest
from ports.training.digests import tensors_digest


def check_digests(evidence: Evidence, subject: Subject, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from _records(subject, folder)
    yield _tensors(subject)
    yield _draft(evidence, subject)


def _records(subject: Subject, folder: Path) -> Iterator[Row]:
    """Records as earlier releases digested them, whose checkpoints must resume: name, size and ends; -1 where gone."""
    (folder / "below").mkdir(parents=True)
    names = ("end.ckpt", "below/both.safetensors", "gone.ckpt", "../elsewhere.ckpt")
    files = [(folder / name).resolve() for name in names]
    for file in (*files[:2], files[3]):
        file.write_bytes(b"abc")
    text = b"end.ckpt\0003\0abc" + b"below/both.safetensors\0003\0abcabc" + b"gone.ckpt\000-1\0"
    text += b"elsewhere.ckpt\0003\0abc"
    long = bytes(range(250)) * 20
    for name, ends in (("long.ckpt", long[-4096:]), ("long.safetensors", long[:4096] + long[-4096:])):
        files.append(folder.resolve() / name)
        files[-1].write_bytes(long)
        text += f"{name}\0005000\0".encode() + ends
    found = records_digest(folder.resolve(), files)
    yield compare_value(subject, "digest", "records", hashlib.sha256(text).hexdigest()[:16], found)


def _tensors(subject: Subject) -> Row:
    """Tensors as earlier releases digested them: names in order, dtypes, shapes and bytes."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3).t(), "a": torch.tensor([1, 2], dtype=torch.int16)}
    text = b"a\0torch.int16\0(2,)\0" + bytes([1, 0, 2, 0])
    text += b"b\0torch.float32\0(3, 2)\0" + np.array([0, 3, 1, 4, 2, 5], dtype="<f4").tobytes()
    expected = hashlib.sha256(text).hexdigest()[:16]
    return compare_value(subject, "digest", "tensors", expected, tensors_digest(tensors))


def _draft(evidence: Evidence, subject: Subject) -> Row:
    """A draft's config is the same in whatever order its fields are."""
    layer = evidence.draft.config.transformer_layer_config.to_dict()
    found = []
    for fields in (layer, dict(reversed(layer.items()))):
        config = SimpleNamespace(
            speculators_model_type="any", transformer_layer_config=SimpleNamespace(to_dict=lambda fields=fields: fields)
        )
        draft = SimpleNamespace(config=config, named_buffers=list, named_parameters=list)
        found.append(fingerprint(settings_for(evidence.case, Path("nowhere")), draft, [], {})["draft"])
    return compare_value(subject, "digest", "config in another order", found[0], found[1])
