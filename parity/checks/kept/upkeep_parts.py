"""The parts that a run's checkpoints are made of: generators, the lock on their directory, files beside a draft."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from parity.checks.evidence import Evidence
from parity.compare import Subject, compare_value
from parity.environment import deterministic
from parity.errors import InputError
from parity.result import Row
from parity.runs.port import settings_for
from ports.training.checkpoint import generators
from ports.training.checkpoint.adam import adam_state, load_adam_state
from ports.training.checkpoint.fingerprint import fingerprint, records_digest
from ports.training.checkpoint.lock import FILE, DirectoryLock
from ports.training.checkpoint.manifest import read_json
from ports.training.checkpoint.stop import EXIT_CODE
from ports.training.digests import tensors_digest
from ports.training.saving import save_draft

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)
"""Another process that holds the lock until it is told to end."""

TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

HOLDER = "process 1 on " + "there" * 50
"""More than is repeated of what stands in the file."""

MOST = 64 << 20
"""Bytes of JSON that are read."""


def check_parts(evidence: Evidence, subject: Subject, folder: Path) -> Iterator[Row]:
    """Rows of the upkeep check."""
    yield from _generators(subject)
    yield from _generators_of_loaders(subject)
    yield from _lock(subject, folder / "locked")
    yield from _digest(subject, folder)
    yield _tensors(subject)
    yield from _adam(subject, folder)
    yield _draft_digest(evidence, subject)
    yield compare_value(subject, "stopped", "exit code", os.EX_TEMPFAIL, EXIT_CODE)
    yield from _json(subject, folder)
    note = folder / "note.txt"
    note.write_text("beside")
    directory = save_draft(evidence.draft, folder / "draft", [note])
    found = sorted(path.name for path in directory.iterdir())
    expected = ["config.json", "model.safetensors", "note.txt"]
    yield compare_value(subject, "draft", "files", expected, [name for name in expected if name in found])


def _generators(subject: Subject) -> Iterator[Row]:
    """Every generator draws again what it drew, also where a second Gaussian was waiting."""
    own = torch.Generator()
    for waiting in (True, False):
        with deterministic(3):
            if waiting:
                random.gauss(0, 1)
                np.random.randn()
            state = generators.capture(own)
            first = _draws(own)
            generators.restore(state, own)
            yield compare_value(subject, "generators", f"Gaussian waiting: {waiting}", first, _draws(own))


def _generators_of_loaders(subject: Subject) -> Iterator[Row]:
    """Several processes share one that accelerate keeps equal; else it is the sampler's, if that has one."""
    first, second = torch.Generator(), torch.Generator()
    own, other, none = (SimpleNamespace(generator=each) for each in (first, second, None))
    loaders: dict[str, tuple[Any, Any]] = {
        "of the sampler": (first, SimpleNamespace(sampler=own)),
        "of the sampler inside": (first, SimpleNamespace(sampler=other, get_sampler=lambda: own)),
        "shared": (second, SimpleNamespace(sampler=own, synchronized_generator=second)),
        "none": (None, SimpleNamespace(sampler=none)),
        "no generator": (None, SimpleNamespace(sampler=SimpleNamespace(generator=5))),
    }
    for name, (expected, loader) in loaders.items():
        yield compare_value(subject, "generators", name, id(expected), id(generators.sampler_generator(loader)))
    state = generators.capture()
    generators.restore(state, first)
    yield compare_value(subject, "generators", "without the sampler's", False, "sampler" in state)


def _draws(own: torch.Generator) -> list[float]:
    drawn = [torch.rand(()).item(), torch.rand((), generator=own).item(), random.random(), float(np.random.rand())]
    return [*drawn, random.gauss(0, 1), float(np.random.randn())]


def _digest(subject: Subject, folder: Path) -> Iterator[Row]:
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


def _draft_digest(evidence: Evidence, subject: Subject) -> Row:
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


def _lock(subject: Subject, folder: Path) -> Iterator[Row]:
    """Another process' directory is refused, with its name, until it ends."""
    folder.mkdir(parents=True)
    (folder / FILE).write_text(f"{HOLDER}\n")
    holder = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(folder / FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield compare_value(subject, "lock", "held", ("cpdir", f"in use by {HOLDER[:200]}"), _locked(folder))
    finally:
        holder.communicate(b"\n")
    yield compare_value(subject, "lock", "given back", ("", ""), _locked(folder))
    lock = DirectoryLock(folder)
    yield compare_value(subject, "lock", "free for others while held", False, _is_free(folder))
    lock.release()
    yield compare_value(subject, "lock", "free for others afterwards", True, _is_free(folder))
    created = folder.with_name("created")
    created.mkdir()
    DirectoryLock(created).release()
    mode = stat.S_IMODE((created / FILE).stat().st_mode)
    yield compare_value(subject, "lock", "mode", oct(mode & 0o644), oct(mode))
    for text in ("x" * 300, ""):
        (folder / FILE).write_text(text)
        _locked(folder)
        named = (folder / FILE).read_text().split()[:1]
        yield compare_value(subject, "lock", f"holder after {len(text)} characters", ["process"], named)


def _is_free(folder: Path) -> bool:
    """Whether another process could take the lock."""
    tried = subprocess.run([sys.executable, "-S", "-c", TRY, str(folder / FILE)], stderr=subprocess.DEVNULL)
    return tried.returncode == 0


def _locked(folder: Path) -> tuple[str, str]:
    """What the refusal names and found; the lock is let go again."""
    try:
        DirectoryLock(folder).release()
    except InputError as error:
        return error.field or "?", str(error.found)
    return "", ""
