"""Everything that happens before the verifier runs: dialogues to ids, fingerprints, the split, the estimate."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ports.errors import InputError
from ports.generate.conversations import ConversationError, Conversations, load_conversations, split_range
from ports.generate.encode import Encoded, Encoder
from ports.generate.families import load_family
from ports.generate.manifest import Manifest, digest
from ports.generate.records import ITEM_BYTES, record_bytes
from ports.generate.settings import GenerationSettings
from ports.numerics import numerics
from ports.training.data.feature_layers import chosen_layers
from ports.training.data.features import PROTOTYPE_DTYPE
from ports.training.data.record_info import RecordInfo
from ports.training.verifier import tokenizer_fingerprint, verifier_config, verifier_fingerprint


@dataclass(frozen=True)
class Row:
    """A dialogue that will be a record: its number in the data set's order, and its tokens."""

    number: int
    encoded: Encoded


@dataclass
class Work:
    """What the processes will do: ``parts`` hold the rows of each; ``skipped`` says why rows were left out."""

    parts: list[list[Row]]
    skipped: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Encoded]:
        """All dialogues in order."""
        return [row.encoded for part in self.parts for row in part]


def build_encoder(settings: GenerationSettings, tokenizer: Any) -> Encoder:
    """How the settings turn a dialogue into tokens."""
    space = settings.leading_space and settings.dataset == "sharegpt"
    family = load_family(settings.chat_template)
    return Encoder(tokenizer, family, settings.loss_mask, space, settings.max_length)


def encode_rows(settings: GenerationSettings, tokenizer: Any) -> Work:
    """All dialogues, split over the processes.

    Raises:
        InputError: one that cannot be used, unless ``--on_bad_conversation skip`` says otherwise; or none is left. One
            without an answer is left out in any case.
    """
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    encoder, work = build_encoder(settings, tokenizer), Work([])
    last = min(settings.samples, len(conversations) - 1)
    with tqdm(total=last + 1, desc="tokenizing", disable=not settings.progress) as bar:
        for numbers in split_range(last, settings.processes):
            work.parts.append([])
            for number in numbers:
                _encode_one(settings, conversations, encoder, number, work)
                bar.update()
    if not work.rows:
        found = f"none of {len(work.skipped)} that can be used, the first: {work.skipped[0]}"
        raise InputError(conversations.source, "rows", found, "at least one dialogue")
    return work


def _encode_one(
    settings: GenerationSettings, conversations: Conversations, encoder: Encoder, number: int, work: Work
) -> None:
    try:
        encoded = encoder(conversations.messages(number))
    except ConversationError as error:
        row = conversations.row(number)
        if settings.on_bad_conversation == "fail":
            expected = "a dialogue that can be used; --on_bad_conversation skip leaves it out"
            raise InputError(conversations.source, f"row {row}", error, expected) from error
        work.skipped.append(f"row {row}: {error}")
    else:
        if any(encoded.loss_mask):
            work.parts[-1].append(Row(number, encoded))
        else:  # a record that would teach nothing
            work.skipped.append(f"row {conversations.row(number)}: no token of an answer")


@dataclass(frozen=True)
class Geometry:
    """What is read from the verifier, before it is loaded; ``hidden_size`` 0 stands for records without features.

    ``positions`` are those that its config names, if it does.
    """

    hidden_size: int
    layers: list[int] | None
    dtype: str
    positions: int | None = None

    @property
    def without_features(self) -> bool:
        """Are ids and masks all that is wanted?"""
        return self.hidden_size == 0

    @property
    def widths(self) -> tuple[int, int]:
        """Of the features and of the separate target."""
        return (self.hidden_size, 0) if self.layers is None else (len(self.layers) * self.hidden_size, self.hidden_size)

    def bytes_of(self, length: int) -> int:
        """Size of a record of that many tokens."""
        return record_bytes(length, *self.widths, ITEM_BYTES[self.dtype])


def geometry(settings: GenerationSettings) -> Geometry:
    """Of the records that the settings ask for; raises as :func:`geometry_of`."""
    return geometry_of(settings.algorithm, settings.model_path, settings.aux_layers, settings.dtype)


def geometry_of(algorithm: str, model_path: str, aux_layers: str = "prototype", dtype: str = "default") -> Geometry:
    """From the verifier's config.

    Raises:
        InputError: no readable config, or layers that the verifier does not have.
    """
    config = verifier_config(model_path)
    layers = chosen_layers(aux_layers, model_path, config.num_hidden_layers) if algorithm == "eagle3" else None
    dtype = PROTOTYPE_DTYPE.get(algorithm, "auto") if dtype == "default" else dtype
    size = 0 if algorithm == "ids" else config.hidden_size
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    positions = getattr(config, "max_position_embeddings", None)
    return Geometry(size, layers, own if dtype == "auto" else dtype, positions)


def describe(settings: GenerationSettings, work: Work, shape: Geometry, tokenizer: Any, device: str) -> Manifest:
    """The manifest of this run."""
    return Manifest(
        algorithm=settings.algorithm,
        verifier=verifier_fingerprint(settings.model_path),
        tokenizer=tokenizer_fingerprint(tokenizer),
        feature_layers=shape.layers or [],
        dtype=shape.dtype,
        device=device,
        matmul_precision=str(numerics()["matmul_precision"]),
        chat_template=settings.chat_template.rpartition(":")[2],
        chat=load_family(settings.chat_template).model_dump(mode="json", exclude_defaults=True),
        loss_mask=settings.loss_mask.value,
        batch_tokens=settings.batch_tokens,
        processes=[len(part) for part in work.parts],
        tokens=sum(len(row.ids) for row in work.rows),
        supervised=sum(sum(row.loss_mask) for row in work.rows),
        rows=digest(work.rows),
    )


def info_of(manifest: Manifest, row: Row) -> RecordInfo:
    """What the record of ``row`` says about itself."""
    return RecordInfo(
        algorithm=manifest.algorithm,
        verifier=manifest.verifier,
        tokenizer=manifest.tokenizer,
        feature_layers=tuple(manifest.feature_layers),
        loss_mask=manifest.loss_mask,
        chat_template=manifest.chat_template,
        row=row.number,
    )


def say(line: str) -> None:
    """To stderr, where the progress bars are."""
    print(line, file=sys.stderr, flush=True)
