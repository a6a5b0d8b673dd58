"""Files read and written: what comes from outside is checked before it is used, folders appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
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
    return _parsed(file, "file", _text(file, expected))


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        InputError: missing, or a line that is not a JSON object; names the line.
    """
    for number, line in enumerate(_text(file, "a JSON-lines file").splitlines(), 1):
        yield _parsed(file, f"line {number}", line)


def _text(file: Path, expected: str) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, "file", getattr(error, "strerror", None) or str(error), expected) from error


def _parsed(file: Path, field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, too deep
        raise InputError(file, field, str(error), "a JSON object") from error
    if not isinstance(value, dict):
        raise InputError(file, field, type(value).__name__, "a JSON object")
    return value


def validated(file: Path, form: Any, document: object) -> Any:
    """What a file holds as a type that pydantic knows; InputError for the first thing that does not fit."""
    try:
        return TypeAdapter(form).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(file, field, repr(first.get("input"))[:80], first["msg"]) from error


def check_output(place: Path | None, option: str, folder: bool = False) -> None:
    """Refuse a file that could not be written, before anything is measured; nothing is left behind.

    Args:
        place: where it is to go; None: nowhere.
        option: that names it.
        folder: it is a folder, which need not be there yet, nor those above it.

    Raises:
        InputError: something else in its place, no folder to hold it, no permission, a full disk.
    """
    if place is None:
        return
    if not folder and place.is_dir():
        raise InputError(place, option, "a folder", "a file")
    way = (place.absolute(), *place.absolute().parents) if folder else (place.parent,)
    above = next((one for one in way if os.path.lexists(one)), place.parent)
    if not above.is_dir():
        raise InputError(place, option, f"no folder {above}", "a place in a folder that is there")
    try:
        if folder or not place.exists():
            with tempfile.TemporaryFile(dir=above) as probe:
                probe.write(b"room")
                probe.flush()
        elif not os.access(place, os.W_OK):  # what is there may be /dev/stdout, which is not opened for this
            raise PermissionError("a file that is not to be written")
    except OSError as error:
        raise InputError(place, option, str(error), "room and permission to write") from error


def strict_json(document: Any) -> str:
    """Plain values, and whatever else has a text, as JSON.

    Floats are in full precision; NaN and infinities, which JSON lacks, are the strings ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"``, which both Python's ``float`` and JavaScript's ``Number`` understand.
    """
    return json.dumps(_finite(document), indent=1, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(float(value))
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_whole(file: Path, text: str) -> None:
    """Write ``text`` into a neighbour of ``file`` and rename it: ``file`` is the old one or the whole new one.

    Raises:
        InputError: no such file can be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".part.") as place:
            new = Path(place) / "new"
            new.write_text(text, encoding="utf-8", errors="replace")
            os.replace(new, file)
    except OSError as error:
        raise InputError(file, "file", error.strerror or error, "a place that can be written") from error


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into an empty folder beside ``folder`` and put it in that place; what lay there is replaced.

    Raises:
        InputError: it could not be written; what was there before is still there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            new, old = Path(place) / "new", Path(place) / "old"
            new.mkdir()
            fill(new)
            if folder.is_dir():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
    except (OSError, SafetensorError) as error:
        raise InputError(folder, "folder", str(error), "room and permission to write") from error
