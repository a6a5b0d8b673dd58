"""The draft vocabulary: which verifier tokens the draft can say, and how ids translate.

``t2d`` bool [V] marks the kept verifier ids; ``d2t`` int64 [D] holds, for draft id j, (j-th kept verifier id) - j.
``vocabulary.json`` beside the two says what they were made from, and their digest, which data, config and checkpoint
share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ports.errors import InputError, reason
from ports.files import check_regular
from ports.training.shards import tensors_digest

FILE = "vocabulary.json"
VOCABULARY_KEY = "draft_vocab_digest"
"""Where a draft's config names its map."""


@dataclass(frozen=True)
class VocabularyMap:
    """A checked pair: ``t2d`` bool [V] and ``d2t`` int64 [D]."""

    t2d: Tensor
    d2t: Tensor

    @property
    def digest(self) -> str:
        """16 hex digits, the same for the same map wherever it lies."""
        return tensors_digest({"t2d": self.t2d, "d2t": self.d2t})


def load_vocabulary_map(t2d_file: Path, d2t_file: Path, vocab_size: int, draft_vocab_size: int) -> VocabularyMap:
    """Read and check ``t2d.npy`` and ``d2t.npy``.

    Raises:
        InputError: unreadable file, wrong size, or a ``d2t`` that does not name exactly the ids of ``t2d`` in
            ascending order.
    """
    arrays = _read(t2d_file, "t2d"), _read(d2t_file, "d2t")
    return check_map((t2d_file, d2t_file), arrays, vocab_size, draft_vocab_size)


def check_map(
    files: tuple[Path, Path], arrays: tuple[NDArray[Any], NDArray[Any]], vocab_size: int, draft_vocab_size: int
) -> VocabularyMap:
    """The map that ``arrays``, t2d and d2t out of ``files``, are; see :func:`load_vocabulary_map`."""
    for file, field, array, size in zip(files, ("t2d", "d2t"), arrays, (vocab_size, draft_vocab_size)):
        if array.dtype.kind not in "biu" or array.shape != (size,):
            raise InputError(file, field, f"{array.dtype} {array.shape}", f"bools or integers ({size},)")
    t2d, d2t = arrays[0].astype(bool), arrays[1].astype(np.int64)
    if int(t2d.sum()) != draft_vocab_size:
        raise InputError(files[0], "t2d", f"{int(t2d.sum())} kept ids", f"draft_vocab_size = {draft_vocab_size}")
    kept, named = np.flatnonzero(t2d), d2t + np.arange(draft_vocab_size)
    for j in np.flatnonzero(kept != named):
        raise InputError(files[1], "d2t", f"draft id {j} -> {named[j]}", f"{kept[j]}, the {j}-th id kept by t2d")
    return VocabularyMap(torch.from_numpy(t2d), torch.from_numpy(d2t))


def _read(file: Path, field: str) -> NDArray[Any]:
    expected = "a .npy array without pickled objects"
    check_regular(file, field)
    if not file.exists():
        made = "--data DIR, where speculator vocabulary --data DIR --draft-config FILE writes one"
        raise InputError(
            file, field, "no such file", f"a vocabulary map: --t2d and --d2t, or files of these names in {made}"
        )
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, and raises whatever its bytes run into
        raise InputError(file, field, reason(error), expected) from error
    if not isinstance(array, np.ndarray):
        raise InputError(file, field, "several arrays in one file", expected)
    return array


class VocabularyFile(BaseModel):
    """``vocabulary.json``. Of the ``tokens`` that were counted, the draft can say ``covered``."""

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
    """The content of ``file``; InputError if it is something else."""
    try:
        return VocabularyFile.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        expected = "what speculator vocabulary wrote"
        raise InputError(file, "vocabulary", reason(error), expected) from error


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
