"""Size and sha256 of every file of a checkpoint, so that a torn or bit-flipped one is recognised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ports.errors import InputError
from ports.training.checkpoint import FOLDER

FORMAT_VERSION = 1
FILE = f"{FOLDER}/manifest.json"
LARGEST = 64 << 20
"""Bytes of JSON that are read at most: a manifest or a state is a few kilobytes."""


class Entry(BaseModel):
    """One file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """``manifest.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int
    files: dict[str, Entry]


def seal(directory: Path) -> None:
    """Write the manifest of everything that lies in ``directory``."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    entries = {str(path.relative_to(directory)): _entry(path) for path in files}
    manifest = Manifest(format_version=FORMAT_VERSION, files=entries)
    (directory / FILE).write_text(manifest.model_dump_json(indent=1) + "\n")


def verify(directory: Path) -> None:
    """Every file that the manifest names is there, byte for byte.

    Files beside them are not looked at: users put notes into checkpoints.

    Raises:
        InputError: no manifest, one that cannot be read, one of a newer format, or a file that differs from it.
    """
    manifest = _read(directory / FILE)
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise InputError(directory / FILE, "files", name, "paths inside the checkpoint")
        if not path.is_file():
            raise InputError(path, "manifest", "missing", f"{entry.bytes} bytes")
        if path.stat().st_size != entry.bytes:
            raise InputError(path, "manifest", f"{path.stat().st_size} bytes", f"{entry.bytes} bytes")
        found = _entry(path)
        if found != entry:
            raise InputError(path, "manifest", f"sha256 {found.sha256[:16]}", f"sha256 {entry.sha256[:16]}")


def read_json(file: Path, field: str) -> dict[str, object]:
    """A JSON object of a format this version knows.

    Raises:
        InputError: unreadable, oversized, not an object, or of a newer format.
    """
    try:
        size = file.stat().st_size
        content = json.loads(file.read_bytes()) if size <= LARGEST else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(file, field, str(error).split("\n")[0][:200], "a readable JSON object") from error
    if size > LARGEST:
        raise InputError(file, field, f"{size} bytes", f"at most {LARGEST}")
    if not isinstance(content, dict):
        raise InputError(file, field, type(content).__name__, "a JSON object")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormatError(file, "format_version", version, f"at most {FORMAT_VERSION}: written by a newer release")
    return content


class NewerFormatError(InputError):
    """A checkpoint that a newer release wrote: whole, but not for us."""

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object, object]]:
        return NewerFormatError, (self.file, self.field, self.found, self.expected)


def _read(file: Path) -> Manifest:
    content = read_json(file, "manifest")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise explain(file, error) from error
    if manifest.format_version < 1 or f"{FOLDER}/state.json" not in manifest.files:
        raise InputError(file, "files", f"version {manifest.format_version}", "a manifest that names the state")
    return manifest


def explain(file: Path, error: ValidationError) -> InputError:
    """The first complaint of a schema as bad input."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "schema"
    return InputError(file, field, repr(first.get("input"))[:80], first["msg"])


def _entry(path: Path) -> Entry:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return Entry(bytes=path.stat().st_size, sha256=digest.hexdigest())
