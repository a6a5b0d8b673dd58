"""``vocabulary.json``: what a vocabulary map was made from, and its hash, which data, config and checkpoint share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ports.errors import InputError

FILE = "vocabulary.json"
VOCABULARY_KEY = "draft_vocab_digest"
"""Where a draft's config names its map."""


class VocabularyFile(BaseModel):
    """Beside ``t2d.npy`` and ``d2t.npy``. Of the ``tokens`` that were counted, the draft can say ``covered``."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    digest: str
    counts: str
    vocab_size: int
    draft_vocab_size: int
    records: int
    tokens: int
    covered: int
    tokenizer: str | None


def read_vocabulary_file(file: Path) -> VocabularyFile:
    """The content of ``file``.

    Raises:
        InputError: unreadable, or something else.
    """
    try:
        return VocabularyFile.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        expected = "what speculator-generate vocabulary wrote"
        raise InputError(file, "vocabulary", str(error).split("\n")[0], expected) from error


def check_digest(digest: str, t2d: Path, directories: Iterable[Path], config: tuple[str, str | None]) -> None:
    """Refuse (InputError) a map that is not the one of the data or of the draft's config.

    Args:
        digest: the map's, as loaded.
        t2d: where it was loaded from.
        directories: any of them may hold a ``vocabulary.json``.
        config: the draft config's name and the digest it names, if it does.
    """
    files = [file for file in dict.fromkeys(folder / FILE for folder in directories) if file.is_file()]
    known = [(str(file), read_vocabulary_file(file).digest) for file in files]
    for source, expected in [*known, config]:
        if expected is not None and expected != digest:
            raise InputError(t2d, "vocabulary", f"a map with hash {digest}", f"{expected}, the one of {source}")
