"""A directory appears whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from ports.errors import InputError

MARK = ".speculator-port."
"""What the hidden names of this writer begin with: everything else in a directory is its user's."""

PARTIAL, OLD, REMOVED = ".partial", ".old", ".removed"


def write_directory(directory: Path, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write into a hidden folder beside ``directory``, sync it, and put it in that place.

    An older directory of that name is moved aside only then, and put back if the renaming fails.

    Raises:
        InputError: the disk is full, broken or not writable; what was there before is still there.
    """
    partial = _hidden(directory, PARTIAL)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        fill(partial)
        _sync(partial)
        _replace(partial, directory)
    except (OSError, SafetensorError) as error:
        expected = f"room and permission to write; {_kept(directory)}"
        raise InputError(directory, "checkpoint", f"{error} while saving", expected) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def write_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: written beside it, synced, renamed.

    Raises:
        InputError: it could not be written; what was there before is still there.
    """
    partial = _hidden(path, PARTIAL)
    try:
        partial.write_bytes(content)
        _sync_one(partial)
        os.rename(partial, path)
        _sync_one(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(path, "file", str(error), f"room and permission to write; {_kept(path)}") from error


def remove_directory(directory: Path) -> None:
    """Delete a directory that must never be seen half deleted."""
    removed = _hidden(directory, REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(directory, removed)
    shutil.rmtree(removed, ignore_errors=True)


def sweep(parent: Path) -> list[Path]:
    """Clear away what killed writers left in ``parent``; a directory that was moved aside comes back if it is needed.

    Returns the directories that came back.
    """
    returned = []
    for left, directory in _moved_aside(parent):
        if not directory.exists():
            os.rename(left, directory)
            returned.append(directory)
    for suffix in (PARTIAL, OLD, REMOVED):
        for left in parent.glob(f"{MARK}*{suffix}"):
            left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)
    return returned


def present(parent: Path) -> list[Path]:
    """The visible directories in ``parent``, and those that :func:`sweep` would bring back, where they lie now."""
    visible = [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return visible + [left for left, directory in _moved_aside(parent) if not directory.exists()]


def public_name(directory: Path) -> str:
    """The name that a directory has, or had before it was moved aside."""
    name = directory.name
    return name.removeprefix(MARK).removesuffix(OLD) if name.startswith(MARK) else name


def _moved_aside(parent: Path) -> Iterator[tuple[Path, Path]]:
    for left in sorted(parent.glob(f"{MARK}*{OLD}")):
        yield left, parent / public_name(left)


def _hidden(directory: Path, suffix: str) -> Path:
    return directory.with_name(f"{MARK}{directory.name}{suffix}")


def _kept(directory: Path) -> str:
    return f"the {directory.name} from before is untouched" if directory.exists() else "nothing of it was kept"


def _replace(new: Path, directory: Path) -> None:
    old = _hidden(directory, OLD)
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
    try:
        os.rename(new, directory)
    except OSError:
        if old.exists():
            os.rename(old, directory)
        raise
    _sync_one(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
