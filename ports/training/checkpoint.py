"""Checkpoints on the disk: what one holds, how it appears whole or not at all, and one run a directory.

A checkpoint is a plain Speculators directory with a subfolder ``training_state/``::

    model3/ or step_1200/       config.json, model.safetensors, the verifier's tokenizer files
      training_state/
        state.json              position, totals, schedule, fingerprint of the run: :class:`State`
        optimizer.safetensors   Adam's moments and step counts by parameter name
        generators.safetensors  random generators of every process, now and at the pass' start
        manifest.json           size and sha256 of every file: :class:`Manifest`
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from ports.errors import InputError
from ports.files import read_json
from ports.training.metrics import Count, PassTotals, Strict

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FOLDER = "training_state"
STATE, MANIFEST = f"{FOLDER}/state.json", f"{FOLDER}/manifest.json"
BEST = "best.json"
OPTIMIZER, GENERATORS = f"{FOLDER}/optimizer.safetensors", f"{FOLDER}/generators.safetensors"

ROWS = f"{FOLDER}/optimizer_0.safetensors"
"""Under FSDP2 0.1.0 wrote each process' rows of Adam's state to a file of its own."""

FORMAT_VERSION: Literal[2] = 2
"""1 knew the verifier of a run by its embedding and head alone."""

LARGEST = 64 << 20
"""Bytes of JSON that are read at most: a manifest or a state is a few kilobytes."""

MARK = ".speculator-port."
"""What the hidden names of this writer begin with: everything else in a directory is its user's."""

PARTIAL, OLD = ".partial", ".old"
LOCK = ".lock"
ROOM = "room and permission to write; what was there before is untouched"


class Digest(Strict):
    """Size and sha256: of a file, or of how far ``metrics.jsonl`` reached."""

    bytes: Count
    sha256: str


class Best(Strict):
    """The checkpoint of a directory that expects most to be accepted on held-out records, and where it was saved."""

    model_config = ConfigDict(populate_by_name=True)

    checkpoint: str
    expected_acceptance: float
    epoch: Count = Field(alias="pass")
    step: Count


class State(Strict):
    """Where a run stands at the end of an optimizer step.

    ``serial`` counts the checkpoints of a directory, ``schedule`` the scheduler's steps, of which the rates follow;
    ``best`` is the number and mean loss of the best pass. ``records_seen`` digests names, sizes and times of the
    records, so that unchanged ones are not opened again; ``owes`` says that a stop came before a validation.
    """

    format_version: Literal[2] = FORMAT_VERSION
    serial: Count
    epoch: Count
    micro_batch: Count
    steps: Count
    processes: list[PassTotals] = Field(min_length=1)
    schedule: Count
    log: Digest
    best: tuple[int, float] | None = Field(None, strict=False)
    best_accepted: Best | None = None
    fingerprint: dict[str, Any]
    records_seen: str
    owes: bool = False
    numerics: dict[str, str | int | bool]


class Manifest(Strict):
    """Every file of a checkpoint, so that a torn or bit-flipped one is recognised."""

    format_version: Literal[2] = FORMAT_VERSION
    files: dict[str, Digest]


S = TypeVar("S", bound=Strict)


class OtherFormatError(InputError):
    """A checkpoint that a newer or older release wrote: intact, but not for us."""


def write_state(directory: Path, state: State) -> None:
    """Floats are written so that they read back to the bit."""
    (directory / STATE).write_text(state.model_dump_json(indent=1) + "\n")


def read_state(directory: Path) -> State:
    """The state that lies in a checkpoint.

    Raises:
        InputError: unreadable, oversized, of another format (:class:`OtherFormatError`), or a field that does not fit.
    """
    return _read(directory / STATE, State)


def _read(file: Path, schema: type[S]) -> S:
    field = schema.__name__.lower()
    if os.path.isfile(file) and (size := file.stat().st_size) > LARGEST:
        raise InputError(file, field, f"{size} bytes", f"at most {LARGEST}")
    content = read_json(file, field, "a readable JSON object")
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise OtherFormatError(file, "format_version", version, f"at most {FORMAT_VERSION}: written by a newer release")
    if isinstance(version, int) and version < FORMAT_VERSION:
        older = "written by an older release, which knew the run's verifier by a part of its weights"
        expected = f"{FORMAT_VERSION}: {older}; --resume {file.parent.parent} --weights-only starts from its weights"
        raise OtherFormatError(file, "format_version", version, expected)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or field
        raise InputError(file, field, repr(first.get("input"))[:80], first["msg"]) from error


def seal(directory: Path) -> None:
    """Write the manifest of everything that lies in ``directory``."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    manifest = Manifest(files={str(path.relative_to(directory)): _digest(path) for path in files})
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")


def verify(directory: Path) -> None:
    """Every file that the manifest names is there, byte for byte.

    It must name the draft, its config, and all that training goes on from. Files beside them are not looked at: users
    put notes into checkpoints.

    Raises:
        InputError: no manifest, one that cannot be read, leaves something out or is of another format, or a file that
            differs from it.
    """
    files = _read(directory / MANIFEST, Manifest).files
    if ROWS in files:
        expected = f"{OPTIMIZER} alone: written by an older release; --from-checkpoint starts from its weights"
        raise OtherFormatError(directory / MANIFEST, "files", ROWS, expected)
    for name in [STATE, WEIGHTS, CONFIG, OPTIMIZER, GENERATORS]:
        if name not in files:
            expected = "a manifest of the draft, its config and everything of its training state"
            raise InputError(directory / MANIFEST, "files", f"no {name}", expected)
    for name, entry in files.items():
        path = directory / name
        found = _digest(path) if os.path.isfile(path) else "no file"
        if found != entry:
            raise InputError(path, "manifest", found, entry)


def _digest(path: Path) -> Digest:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return Digest(bytes=path.stat().st_size, sha256=digest.hexdigest())


def saved_in(cpdir: Path) -> list[Path]:
    """Every directory with a training state or a draft's weights in ``cpdir``, in name order."""
    found = sorted(path for path in cpdir.glob("*") if not path.name.startswith("."))
    return [path for path in found if (path / FOLDER).is_dir() or (path / WEIGHTS).is_file()]


def check_checkpoint(directory: Path, field: str) -> None:
    """Raise InputError unless ``directory`` holds a draft; of a run's directory the newest checkpoint is named."""
    if (directory / CONFIG).is_file():
        return
    newest = max(saved_in(directory), key=lambda saved: saved.stat().st_mtime, default=None)
    expected = f"one of its checkpoints, the newest is {newest}" if newest else "a Speculators checkpoint directory"
    raise InputError(directory, field, f"no {CONFIG}", expected)


def saved_by(prefix: str, directory: Path) -> bool:
    """Is it ``<prefix><pass>`` or ``step_<n>``, as a run names what it saves? Other names are its user's."""
    return re.fullmatch(rf"({re.escape(prefix)}|step_)\d+", directory.name) is not None


def states_in(cpdir: Path) -> tuple[dict[Path, State], dict[Path, InputError]]:
    """The checkpoints in ``cpdir`` with their states, the last saved first, and those whose state cannot be read."""
    states, unreadable = {}, {}
    for directory in saved_in(cpdir):
        try:
            if (directory / FOLDER).is_dir():
                states[directory] = read_state(directory)
        except InputError as error:
            unreadable[directory] = error
    return dict(sorted(states.items(), key=lambda item: item[1].serial, reverse=True)), unreadable


def write_directory(directory: Path, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write into a hidden folder beside ``directory``, sync it, and put it in that place.

    An older directory of that name is moved aside only then, and put back if the renaming fails.

    Raises:
        InputError: the disk is full, broken or not writable; what was there before is still there.
    """
    partial = _hidden(directory, PARTIAL)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _clear(partial)
        fill(partial)
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        _replace(partial, directory)
    except (OSError, SafetensorError) as error:
        raise InputError(directory, "checkpoint", f"{error} while saving", ROOM) from error
    finally:
        _clear(partial)
    return directory


def write_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: written beside it, synced, renamed.

    Raises:
        InputError: it could not be written; what was there before is still there.
    """
    partial = _hidden(path, PARTIAL)
    try:
        partial.write_bytes(content)
        _sync(partial)
        os.rename(partial, path)
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(path, "file", str(error), ROOM) from error


def remove_directory(directory: Path) -> None:
    """Delete a directory that must never be seen half deleted; of a link the link alone."""
    removed = _hidden(directory, PARTIAL)
    _clear(removed)
    os.rename(directory, removed)
    _clear(removed)


def sweep(parent: Path) -> None:
    """Clear away what killed writers left in ``parent``; a directory that was moved aside comes back if needed."""
    for left in sorted(parent.glob(f"{MARK}*{OLD}")):
        directory = parent / left.name.removeprefix(MARK).removesuffix(OLD)
        if not os.path.lexists(directory):
            os.rename(left, directory)
    for left in parent.glob(f"{MARK}*"):
        _clear(left)


def _clear(path: Path) -> None:
    """Away with it, as far as the disk deletes: what a link points to is its user's."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _hidden(directory: Path, suffix: str) -> Path:
    return directory.with_name(f"{MARK}{directory.name}{suffix}")


def _replace(new: Path, directory: Path) -> None:
    old = _hidden(directory, OLD)
    if os.path.lexists(directory):
        _clear(old)
        os.rename(directory, old)
    try:
        os.rename(new, directory)
    except OSError:
        if os.path.lexists(old):
            os.rename(old, directory)
        raise
    _sync(directory.parent)
    _clear(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DirectoryLock:
    """Holds ``directory``, or what ``name`` stands for in it, until :attr:`release` is called or this process ends.

    A record lock: a killed holder leaves the file behind but not the lock, and loader processes do not inherit it. The
    file stays: removing it would let two runs hold two files of one name.

    Raises:
        InputError: another process holds it; names that and its machine.
    """

    def __init__(self, directory: Path, field: str = "out", name: str = LOCK) -> None:
        import fcntl  # not on Windows, where drafts are read too

        self.file = directory / name
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "an unknown process"
            self.release()
            expected = "a directory that no other run writes to"
            raise InputError(self.file, field, f"in use by {holder}", expected) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
