"""The parts that a run's checkpoints are made of, each by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from parity.compare import Subject, compare_value
from parity.errors import InputError
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.checks.kept.digested import check_digests
from parity.prototypes.checks.kept.generators import check_generators
from parity.prototypes.checks.kept.locked import check_lock
from parity.verdict import Row
from ports.training.checkpoint.adam import adam_state, load_adam_state
from ports.training.checkpoint.manifest import read_json
from ports.training.checkpoint.stop import EXIT_CODE
from ports.training.saving import save_draft

MOST = 64 << 20
"""Bytes of JSON that are read."""


def check_parts(evidence: Evidence, subject: Subject, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from check_generators(subject)
    yield from check_lock(subject, folder / "locked")
    yield from check_digests(evidence, subject, folder)
    yield from _adam(subject, folder)
    yield compare_value(subject, "stopped", "exit code", os.EX_TEMPFAIL, EXIT_CODE)
    yield from _json(subject, folder)
    note = folder / "note.txt"
    note.write_text("beside")
    directory = save_draft(evidence.draft, folder / "draft", [note])
    found = sorted(path.name for path in directory.iterdir())
    expected = ["config.json", "model.safetensors", "note.txt"]
    yield compare_value(subject, "draft", "files", expected, [name for name in expected if name in found])


def _adam(subject: Subject, folder: Path) -> Iterator[Row]:
    """Moments come back in their parameter's dtype, step counts in float32."""
    for dtype in (torch.float32, torch.bfloat16):
        module = torch.nn.Linear(3, 2).to(dtype)
        optimizers = [torch.optim.AdamW(module.parameters()) for _ in range(2)]
        module(torch.ones(1, 3, dtype=dtype)).sum().backward()
        optimizers[0].step()
        stored = adam_state(module, optimizers[0])
        load_adam_state(folder / "adam", stored, module, optimizers[1])
        found = adam_state(module, optimizers[1])
        same = stored.keys() == found.keys() and all(torch.equal(found[name], stored[name]) for name in stored)
        yield compare_value(subject, "adam", str(dtype), True, same)
        dtypes = [str(found[f"{moment}.weight"].dtype) for moment in ("exp_avg", "step")]
        yield compare_value(subject, "adam", f"{dtype}: dtypes", [str(dtype), "torch.float32"], dtypes)


def _json(subject: Subject, folder: Path) -> Iterator[Row]:
    """An object is read up to a size that no state has; beyond it nothing is."""
    file = folder / "state.json"
    for size, expected in ((MOST, "{'a': 1}"), (MOST + 1, f"{MOST + 1} bytes")):
        file.write_bytes(b'{"a": 1}'.ljust(size))
        try:
            found = str(read_json(file, "state"))
        except InputError as error:
            found = str(error.found)
        yield compare_value(subject, "json", f"of {size} bytes", expected, found)
    file.unlink()
