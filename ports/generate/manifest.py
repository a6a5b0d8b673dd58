"""What a directory of records was made from: a run that goes on must be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ports.errors import InputError
from ports.generate.encode import Encoded
from ports.training.checkpoint import write_file
from ports.training.data.record_info import GENERATION
from ports.training.data.records import SUFFIXES

FILE = GENERATION


class Manifest(BaseModel):
    """``outdir/generation.json``. ``rows`` digests the ids and masks of all dialogues in order; ``chat`` is the family
    that was put around them (:class:`~ports.generate.families.ChatFamily`), which the draft's own directory keeps.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    algorithm: str
    verifier: str
    tokenizer: str
    feature_layers: list[int]
    dtype: str
    device: str
    matmul_precision: str = "highest"
    chat_template: str
    chat: dict[str, Any] = Field(default_factory=dict)
    loss_mask: str
    batch_tokens: int
    processes: list[int]
    tokens: int
    supervised: int
    rows: str


def digest(rows: Sequence[Encoded]) -> str:
    """16 hex digits of ids and masks."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps([row.ids, row.loss_mask]).encode())
    return content.hexdigest()[:16]


def write_or_check(outdir: Path, manifest: Manifest) -> None:
    """Start ``outdir``, or go on in it.

    Raises:
        InputError: another run's records are in there.
    """
    file = outdir / FILE
    if not file.exists():
        _refuse_foreign(outdir)
        outdir.mkdir(parents=True, exist_ok=True)
        write_file(file, (manifest.model_dump_json(indent=1) + "\n").encode())
        return
    stored = read_manifest(file).model_dump()
    for name, value in manifest.model_dump(exclude={"chat"}).items():  # ``rows`` tells, and older files have none
        if stored[name] != value:
            expected = f"{value}, as this command says; other records go to another --outdir"
            raise InputError(file, name, stored[name], expected)


def read_manifest(file: Path) -> Manifest:
    """The manifest at ``file``.

    Raises:
        InputError: unreadable, or not a manifest.
    """
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(file, "manifest", str(error).split("\n")[0], "what speculator-generate wrote") from error


def _refuse_foreign(outdir: Path) -> None:
    """Records that no manifest tells about would be read together with ours."""
    if outdir.is_dir() and any(file.suffix in SUFFIXES for file in outdir.rglob("*")):
        raise InputError(outdir, "outdir", f"records without {FILE}", "an empty or missing directory")
