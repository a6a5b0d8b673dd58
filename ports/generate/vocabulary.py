"""Choose the tokens that an Eagle3 draft can say: the most frequent ones in the records."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from speculators.train.vocab_mapping import build_vocab_mappings_from_distribution

from ports import flags
from ports.errors import InputError
from ports.files import check_output
from ports.progress import through
from ports.training.checkpoint import write_file
from ports.training.draft_config import read_config_dict
from ports.training.prepared import is_prepared, prepared_files, prepared_texts
from ports.training.records import Record, RecordInfo, list_records, read_record, recorded_info
from ports.training.settings import CommandSettings
from ports.training.vocabulary import FILE, VocabularyFile, VocabularyMap
from ports.verifier.config import verifier_config

SIZES = (8192, 16384, 32768)
SHARE = 0.995
"""Of the tokens in the records, that a draft's vocabulary holds if nobody says its size."""


class Counts(str, Enum):
    """``ALL``: every token, prompts too, as in the prototype. ``ANSWERS``: those in the loss, as in Speculators."""

    ALL = "all"
    ANSWERS = "answers"


class VocabularySettings(CommandSettings):
    """Write t2d.npy, d2t.npy and vocabulary.json from the tokens of records, or of what Speculators prepared."""

    tmpdir: Path = Field(description="directory of records")
    basepath: str = Field(description="verifier: its vocabulary's size is read")
    configpath: str | None = Field(None, description="draft config: its draft_vocab_size is taken")
    draft_vocab_size: int | None = Field(
        None, ge=1, description="tokens to keep; without it and a draft config: 8192, 16384 or 32768, by their share"
    )
    counts: Counts = Field(Counts.ALL, description="all: as the prototype; answers: tokens in the loss, as Speculators")
    output: Path | None = Field(None, alias="out", description="directory for the three files; default: --data")


def count_tokens(
    files: Sequence[Path], vocab_size: int, counts: Counts, like: RecordInfo | None = None
) -> Counter[int]:
    """How often each id occurs in records of the kind of ``like``; of each only ids and masks count."""
    records = (read_record(file, {}, vocab_size, like) for file in through(files, "counting records"))
    return _counted(records, vocab_size, counts)


def _counted(records: Iterable[Record], vocab_size: int, counts: Counts) -> Counter[int]:
    totals = torch.zeros(vocab_size, dtype=torch.int64)
    for record in records:
        ids = record["input_ids"]
        kept = ids if counts is Counts.ALL else ids[record["loss_mask"].bool()]
        totals += torch.bincount(kept, minlength=vocab_size)
    return Counter({int(token): int(totals[token]) for token in totals.nonzero().flatten()})


def build_map(counts: Counter[int], draft_vocab_size: int, vocab_size: int) -> VocabularyMap:
    """Speculators' builder: the most frequent ids, ties by id, filled up with the lowest ids nobody used."""
    d2t, t2d = build_vocab_mappings_from_distribution(dict(counts), draft_vocab_size, vocab_size)
    return VocabularyMap(t2d, d2t)


def write_vocabulary(settings: VocabularySettings) -> VocabularyFile:
    """Count, choose and write.

    Raises:
        InputError: two sizes, one that the verifier does not have, or unreadable records.
    """
    folder = settings.output or settings.tmpdir
    check_output(folder, "out")
    vocab_size = verifier_config(settings.basepath).vocab_size
    named = _draft_vocab_size(settings, vocab_size)
    prepared, info = is_prepared(settings.tmpdir), None
    files = prepared_files(settings.tmpdir) if prepared else list_records(settings.tmpdir)
    if prepared:
        counts = _counted(prepared_texts(settings.tmpdir, vocab_size), vocab_size, settings.counts)
    else:
        info = recorded_info(files)
        counts = count_tokens(files, vocab_size, settings.counts, info)
    size = named or covering_size(counts, vocab_size)
    chosen = build_map(counts, size, vocab_size)
    content = VocabularyFile(
        digest=chosen.digest,
        counts=settings.counts.value,
        vocab_size=vocab_size,
        draft_vocab_size=size,
        records=len(files),
        tokens=counts.total(),
        covered=sum(count for token, count in counts.items() if bool(chosen.t2d[token])),
        tokenizer=None if info is None else info.tokenizer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("t2d", chosen.t2d), ("d2t", chosen.d2t)):
        stream = io.BytesIO()
        np.save(stream, values.numpy())
        write_file(folder / f"{name}.npy", stream.getvalue())
    write_file(folder / FILE, (content.model_dump_json(indent=1) + "\n").encode())
    return content


def covering_size(counts: Counter[int], vocab_size: int) -> int:
    """The first of :data:`SIZES` whose most frequent tokens are :data:`SHARE` of all; a small vocabulary whole."""
    frequent = [count for _, count in counts.most_common()]
    enough = (size for size in SIZES if sum(frequent[:size]) >= SHARE * counts.total())
    return min(next(enough, SIZES[-1]), vocab_size)


def _draft_vocab_size(settings: VocabularySettings, vocab_size: int) -> int | None:
    """The one that is named, if one is."""
    given = settings.draft_vocab_size
    if settings.configpath is None and given is None:
        return None
    if given is not None and settings.configpath is not None:
        raise InputError("command line", "--draft-vocab-size", given, "a number, or a --draft-config, one of them")
    source = {"draft_vocab_size": given} if settings.configpath is None else read_config_dict(settings.configpath)
    size = source.get("draft_vocab_size")
    if type(size) is not int or not 0 < size <= vocab_size:
        raise InputError(settings.configpath or "command line", "draft_vocab_size", size, f"1..{vocab_size}")
    return size


def choose_vocabulary(settings: VocabularySettings) -> None:
    """Choose, write and say what is covered."""
    chosen = write_vocabulary(settings)
    share = chosen.covered / chosen.tokens if chosen.tokens else 0.0
    counted = f"{chosen.draft_vocab_size} of {chosen.vocab_size} tokens cover {share:.2%} of {chosen.tokens:,}"
    print(f"{counted}; t2d.npy and d2t.npy are in {settings.output or settings.tmpdir}", file=sys.stderr)


command = flags.command(VocabularySettings, choose_vocabulary)
