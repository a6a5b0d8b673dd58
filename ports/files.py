"""Files that users name, looked at before they are opened, and places for output before anything is computed for them.

A FIFO would be waited for without end, a disk that is full would be met after hours of work.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ports.errors import InputError, reason

PROBE = bytes(1 << 16)
KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def check_regular(file: str | Path, field: str) -> None:
    """Refuse (InputError) FIFOs, sockets and devices; a file that is missing is left to who opens it."""
    try:
        kind = stat.S_IFMT(os.stat(file).st_mode)
    except (OSError, ValueError):
        return
    if kind in KINDS:
        raise InputError(file, field, KINDS[kind], "a regular file")


def read_json(file: Path, field: str, expected: str) -> Any:
    """The JSON value in ``file``.

    Raises:
        InputError: it cannot be read, and why.
    """
    check_regular(file, field)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(file, field, reason(error), expected) from error


def read_yaml(file: Path, field: str, expected: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: no regular file, not YAML, no mapping, or one with a key that is no text.
    """
    check_regular(file, field)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(file, field, str(error).split("\n")[0], "a readable YAML file") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(file, field, type(content).__name__, expected)
    return content


def name_in(directory: Path, file: Path) -> str:
    """Of ``file`` below ``directory``, wherever that lies; of another file the last part alone."""
    return file.relative_to(directory).as_posix() if file.is_relative_to(directory) else file.name


def is_text(words: str) -> bool:
    """Can it be written? Half of a surrogate pair, which JSON and YAML can name, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in words)


def check_output(directory: Path, field: str, needed: int = 0, advice: str = "") -> None:
    """Refuse a directory that could not be made, written to, or hold ``needed`` bytes; nothing is made or left.

    ``advice`` follows what is needed.

    Raises:
        InputError: a file in its place or above it, no permission, a full disk.
    """
    place = _nearest(directory, field)
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(PROBE)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise InputError(directory, field, str(error), "room and permission to write") from error
    if free < needed:
        raise InputError(directory, field, f"{gigabytes(free)} free", f"{gigabytes(needed)} to write{advice}")


def check_outside(place: Path, field: str, data: str, flag: str) -> None:
    """Refuse (InputError) a ``place`` for output in a directory ``data``, where the next run would read it."""
    folder = Path(data)
    if folder.is_dir() and place.resolve().is_relative_to(folder.resolve()):
        raise InputError(place, field, f"inside {folder}", f"a place outside --{flag}, all of which is read")


def check_output_file(file: Path, field: str) -> None:
    """Refuse (InputError) a file that could not be written, into a folder that is there already."""
    if file.is_dir():
        raise InputError(file, field, "a directory", "a file")
    if os.access(file, os.W_OK):  # that may be /dev/stdout
        return
    if file.exists():
        raise InputError(file, field, "a file that is not to be written", "permission to write")
    if not file.parent.is_dir():
        raise InputError(file, field, f"no folder {file.parent}", "a file in a folder that exists")
    check_output(file.parent, field)


def _nearest(directory: Path, field: str) -> Path:
    """``directory``, or what exists of the way to it."""
    way = directory.absolute()
    for place in (way, *way.parents):
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise InputError(directory, field, str(error), "a directory that can be made") from error
        if not place.is_dir():
            raise InputError(directory, field, f"{place}, which is no directory", "a directory, or a place for one")
        return place
    raise InputError(directory, field, "no root", "a directory")


def gigabytes(size: int) -> str:
    """In GB (1e9), at least three digits."""
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"
