"""What lies in a directory was made from something: a file says from what, so that a run which goes on is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ports.errors import InputError
from ports.files import read_json
from ports.training.checkpoint import write_file


def write_manifest(file: Path, content: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_file(file, (json.dumps(content, indent=1) + "\n").encode())


def start_or_go_on(file: Path, made: Mapping[str, Any], field: str, lies_there: str, **more: Any) -> dict[str, Any]:
    """What the manifest ``file`` says, once it says what is ``made`` by this command; it is written if there is none.

    Args:
        file: the manifest.
        made: what must be the same, by name.
        field: the flag that names the place, for errors.
        lies_there: what such a command would have left there; empty: nothing.
        more: what a new manifest says besides.

    Raises:
        InputError: something lies there without a manifest, or with one that says otherwise or cannot be read.
    """
    if not file.exists():
        if lies_there:
            raise InputError(
                file.parent, field, f"{lies_there} without {file.name}", "what this command left, or nothing"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(file, {**made, **more})
    content = read_json(file, "manifest", "what this command wrote")
    if not isinstance(content, dict):
        raise InputError(file, "manifest", type(content).__name__, "what this command wrote")
    for name, value in made.items():
        found = content.get(name, "nothing")
        if found != value:
            raise InputError(file, name, found, f"{value}, as this command says; another one takes another --{field}")
    return content


def digest(items: Iterable[Any]) -> str:
    """16 hex digits of what JSON can hold, in order."""
    content = hashlib.sha256()
    for item in items:
        content.update(json.dumps(item).encode())
    return content.hexdigest()[:16]
