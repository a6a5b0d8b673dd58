"""Files read and written: what comes from outside is checked before it is used, folders appear whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parity.errors import InputError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a pickle under that name is refused, never executed.

    Raises:
        InputError: missing, truncated, or not safetensors.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, "file", str(error), "a safetensors file") from error


def read_sample(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """A sample file, which is a torch pickle; only plain tensors are read, nothing in it is executed.

    Raises:
        InputError: missing, damaged, not plain tensors, or one of ``names`` is not in it.
    """
    try:
        sample = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes run into
        reason = str(error).strip().partition("\n")[0]
        raise InputError(file, "file", reason, "a torch file of plain tensors") from error
    for name in names:
        value = sample.get(name) if isinstance(sample, dict) else None
        if not isinstance(value, Tensor):
            raise InputError(file, name, "missing" if value is None else type(value).__name__, "a tensor")
    return sample


def read_object(file: Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        InputError: missing, or not a JSON object.
    """
    try:
        value = _parse(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, "file", getattr(error, "strerror", None) or str(error), expected) from error
    except MalformedError as error:
        raise InputError(file, "file", str(error), "a JSON object") from error
    return value


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        InputError: missing, or a line that is not a JSON object; names the line.
    """
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, "file", str(error), "a JSON-lines file") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield _parse(line)
        except MalformedError as error:
            raise InputError(file, f"line {number}", str(error), "a JSON object") from error


class MalformedError(ValueError):
    """Text that is not a JSON object."""


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, too deep
        raise MalformedError(str(error)) from error
    if not isinstance(value, dict):
        raise MalformedError(type(value).__name__)
    return value


def misfit(file: Path, error: ValidationError) -> InputError:
    """The first thing that pydantic finds wrong in a file."""
    first = error.errors()[0]
    return InputError(file, ".".join(map(str, first["loc"])), repr(first.get("input"))[:80], first["msg"])


def check_output(file: Path | None, option: str) -> None:
    """Refuse a file that could not be written, before anything is measured; nothing is left behind.

    Raises:
        InputError: a folder in its place, no folder to hold it, no permission, a full disk.
    """
    if file is None:
        return
    if file.is_dir():
        raise InputError(file, option, "a folder", "a file")
    if not file.parent.is_dir():
        raise InputError(file, option, f"no folder {file.parent}", "a folder that is there")
    if not file.exists():
        _probe(file.parent, file, option)
    elif not os.access(file, os.W_OK):
        raise InputError(file, option, "a file that is not to be written", "permission to write")


def check_output_folder(folder: Path, option: str) -> None:
    """The same for a folder, which need not be there yet, nor those above it."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise InputError(folder, option, f"{place}, which is no folder", "a place for a folder")
    _probe(place, folder, option)


def _probe(folder: Path, wanted: Path, option: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"room")
            probe.flush()
    except OSError as error:
        raise InputError(wanted, option, str(error), "room and permission to write") from error


def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` write into an empty folder beside ``folder`` and put it in that place; what lay there is replaced.

    Raises:
        InputError: it could not be written; what was there before is still there.
    """
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        fill(partial)
        if folder.exists():
            old = partial.with_name(f"{partial.name}.old")
            os.replace(folder, old)
            _put(partial, folder, old)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(folder, "folder", str(error), "room and permission to write") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _put(partial: Path, folder: Path, old: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(old, folder)
        raise
