"""Dialogues that are being answered, and what of a window of them is kept when it breaks off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ports.errors import InputError
from ports.files import check_regular
from ports.generate.conversations import Message
from ports.training.checkpoint import write_file

Dialogue = list[Message]


@dataclass
class Talk:
    """A dialogue on its way: ``said`` so far, the ``rounds`` to come, and whether it is ``full``: no room for these.

    ``reasons`` are how each answer ended; ``special`` is an answer with special tokens in it.
    """

    row: int
    rounds: list[Dialogue]
    said: Dialogue = field(default_factory=list)
    full: bool = False
    special: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def cut(self) -> bool:
        """Was it, or any of its answers?"""
        return self.full or "length" in self.reasons

    @property
    def is_whole(self) -> bool:
        """Has every round its answer, or was the dialogue cut before one?"""
        return not self.rounds and (self.full or self.said[-1]["role"] == "assistant")

    def line(self) -> str:
        """As it is written."""
        whole = "length" if self.cut else "stop"
        return json.dumps({"messages": self.said, "finish_reason": whole, "finish_reasons": self.reasons}) + "\n"


class Kept(BaseModel):
    """Of a window that broke off the ``talks`` that were whole, and the digest of how all of them are ``made``."""

    made: str
    talks: list[Talk]


@contextmanager
def keeping(out: Path, made: str, talks: Sequence[Talk]) -> Iterator[None]:
    """Of a window that breaks off the dialogues that are whole are kept beside ``out``, for the next start.

    Only where answers do not depend on what is asked beside them: else all of the window is asked again.

    Raises:
        InputError: some were kept that were made in another way, or cannot be read.
    """
    file = kept_beside(out)
    if file.exists():
        known = {talk.row: talk for talk in talks}
        for kept in _read_kept(file, made):
            if kept.row in known:
                vars(known[kept.row]).update(vars(kept))
    try:
        yield
    except BaseException:
        if whole := [talk for talk in talks if talk.is_whole]:
            write_file(file, Kept(made=made, talks=whole).model_dump_json().encode())
        raise
    file.unlink(missing_ok=True)


def _read_kept(file: Path, made: str) -> list[Talk]:
    check_regular(file, "out")
    try:
        kept = Kept.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(file, "out", "no answers as this release keeps them", "such, or --restart") from error
    if kept.made != made:
        raise InputError(file, "out", "answers that were made in another way", "another --out or --restart")
    return kept.talks


def kept_beside(file: Path) -> Path:
    """Where it lies."""
    return file.with_name(f".{file.name}.kept")
