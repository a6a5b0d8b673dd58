"""Read the recordings' files; everything comes from outside and is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(file, f"line {number}", str(error), "a JSON object") from error
        if not isinstance(value, dict):
            raise InputError(file, f"line {number}", type(value).__name__, "a JSON object")
        yield value
