"""A generation run: dialogues to ids, what it will take, then one or several copies of the verifier that write records.

Flags of the prototypes' ``ge_data.allocation`` have their names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ports.commands import printable_lines
from ports.errors import InputError
from ports.files import check_output, check_outside, gigabytes
from ports.generate.chat import Encoder, LossMask
from ports.generate.conversations import ConversationError, Conversations, load_conversations, split_range
from ports.generate.copies import CopyCount, TensorParallel, copies_of, devices_for, through_copies
from ports.generate.families import load_family
from ports.generate.records import (
    Geometry,
    Manifest,
    Row,
    digest,
    geometry_of,
    is_whole,
    record_file,
    write_or_check,
    write_record,
)
from ports.numerics import best_device, fix_numerics, numerics
from ports.progress import Work, through
from ports.training.checkpoint import DirectoryLock, sweep
from ports.training.online import FeatureReader, checked_device
from ports.training.settings import CommandSettings
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.interfaces import installed, lacks_states
from ports.verifier.loading import load_verifier, states_bytes, verifier_parameters
from ports.verifier.tokenizer import open_tokenizer, tokenizer_fingerprint
from ports.verifier.vllm import VllmReader

SHOWN = 10
"""Skipped dialogues that are named; all are counted."""

Read = Callable[[Sequence[Tensor]], list[dict[str, Tensor]]]
"""Features of dialogues."""

Window = list[tuple[Path, Row]]
"""Records to be, by the file that each goes to."""


class GenerationSettings(CommandSettings):
    """Put dialogues through the verifier, and keep what a draft is trained on.

    Rows, processes and devices are shared out as the prototypes' ge_data.allocation does.
    """

    model_path: str = Field(description="verifier: Hugging Face directory or hub id")
    outdir: Path = Field(description="records go to out/<process>/data_<i>.safetensors")
    data_path: str = Field(
        "0", description="file, directory or hub id; left out, ultrachat is the hub's ultrachat_200k"
    )
    dataset: Literal["sharegpt", "ultrachat", "any"] = Field(
        "ultrachat",
        description="how rows are laid out; any: messages, conversations, turns, question and answer, prompt or text",
    )
    split: str = Field("sft", description="ultrachat on the hub: train_<split>")
    chat_template: str = Field(
        "auto", description="auto: the tokenizer's own; or a family: chatml, llama, qwen, ..., or FILE.yaml:NAME"
    )
    prototype: Literal["llama", "qwen", "mistral"] | None = Field(
        None, description="all as that family's prototype script has it: --chat-template, --loss-mask, --leading-space"
    )
    samples: int = Field(68000, ge=0, description="last row to take, so samples + 1 of them, as the prototypes take")
    copies: CopyCount = None
    tensor_parallel: TensorParallel = None
    total_gpus: int | None = Field(
        None,
        ge=1,
        description="as the prototypes': so many devices, and a folder of records for each tensor_parallel of them",
    )

    algorithm: Literal["eagle3", "hass", "ids"] = Field(
        "eagle3", description="eagle3: three layers and the last; hass: the last; ids: none, for training with --online"
    )
    loss_mask: LossMask = Field(LossMask.EXACT, description="exact: the answers' tokens; prototype: as the prototypes'")
    leading_space: bool = Field(False, description="sharegpt: a space before every answer, as the prototypes put")
    aux_layers: str = Field(
        "prototype", description="eagle3: prototype, speculators, or entries of hidden_states: a,b,c"
    )
    engine: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="auto: vLLM where it is installed and gives the verifier's hidden states, else transformers"
    )
    dtype: Literal["default", "auto", "float16", "bfloat16", "float32"] = Field(
        "default", description="verifier: auto for eagle3 and float16 for hass, as in the prototypes"
    )
    max_length: int = Field(8192, ge=1, description="dialogues are cut to this many tokens")
    batch_tokens: int = Field(16384, ge=1, description="tokens of one forward, padding included; more use more memory")
    device: str | None = Field(None, description="where one process runs; default: its accelerators, else the CPU")
    dry_run: bool = Field(False, description="say what it takes: tokens, bytes, memory; nothing is loaded or written")
    on_bad_conversation: Literal["fail", "skip"] = Field("fail", description="a dialogue that cannot be used")
    progress: bool = Field(True, description="show progress bars")

    @field_validator("dataset", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        """The prototypes spell ultrachat in two ways."""
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> GenerationSettings:
        if (self.total_gpus or 0) % (self.tensor_parallel or 1):
            raise ValueError(f"tensor_parallel {self.tensor_parallel} does not divide total_gpus {self.total_gpus}")
        if self.prototype is not None:
            given = sorted({"chat_template", "loss_mask", "leading_space"} & self.model_fields_set)
            if given:
                raise ValueError(f"prototype says what {given[0]} is: one of the two")
            self.chat_template, self.loss_mask, self.leading_space = self.prototype, LossMask.PROTOTYPE, True
        return self

    @property
    def folders(self) -> int:
        """How many share the rows."""
        return self.total_gpus // (self.tensor_parallel or 1) if self.total_gpus else 1

    def spread(self) -> GenerationSettings:
        """With a number of devices a copy: as asked; with ``total_gpus`` one, as the prototypes' are; else as few as
        hold the verifier."""
        alone = self.total_gpus or self.device or self.algorithm == "ids"
        dtype = geometry_of(self.algorithm, self.model_path, self.aux_layers, self.dtype).dtype
        devices = self.tensor_parallel or (1 if alone else devices_for(self.model_path, dtype))
        return self.model_copy(update={"tensor_parallel": devices})

    def checked_copies(self) -> int:
        """Of the verifier; raises as :func:`ports.generate.copies.copies_of`."""
        asked = self.copies or (self.folders if self.total_gpus else None)
        alone = 1 if self.algorithm == "ids" else None if self.device is None else asked or 1
        return alone or copies_of(asked, self.tensor_parallel or 1)

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a dialogue becomes tokens."""
        space = self.leading_space and self.dataset == "sharegpt"
        return Encoder(tokenizer, load_family(self.chat_template), self.loss_mask, space, self.max_length)


@dataclass(frozen=True)
class Prepared:
    """A run that has not begun: ``places`` of all records; ``skipped`` says why rows were left out.

    ``engine`` is what reads the features, and why it does.
    """

    settings: GenerationSettings
    manifest: Manifest
    shape: Geometry
    places: Window
    skipped: list[str]
    engine: str

    @property
    def lengths(self) -> list[int]:
        """Tokens of every dialogue."""
        return [len(row.ids) for _, row in self.places]

    @property
    def disk(self) -> int:
        """Bytes of all records."""
        return sum(map(self.shape.bytes_of, self.lengths))


def say(line: str) -> None:
    """To stderr, where the progress bars are."""
    print(printable_lines(line), file=sys.stderr, flush=True)


def prepare(settings: GenerationSettings) -> Prepared:
    """Tokenize everything and look at the verifier; nothing is loaded or written.

    Raises:
        InputError: whatever is wrong with dialogues, tokenizer or verifier, or the records would lie among dialogues.
    """
    check_outside(settings.outdir, "out", settings.data_path, "data")
    device = best_device() if settings.device is None else checked_device(settings.device)
    shape = geometry_of(settings.algorithm, settings.model_path, settings.aux_layers, settings.dtype)
    tokenizer = open_tokenizer(settings.model_path)
    parts, skipped = encode_rows(settings, tokenizer)
    rows = [row for part in parts for row in part]
    largest, vocab_size = max(max(row.ids) for row in rows), verifier_config(settings.model_path).vocab_size
    if largest >= vocab_size:
        raise InputError(settings.model_path, "tokenizer", f"id {largest}", f"ids below {vocab_size}, the vocabulary")
    engine = engine_of(settings, max(len(row.ids) for row in rows))
    manifest = Manifest(
        algorithm=settings.algorithm,
        verifier=verifier_fingerprint(settings.model_path),
        tokenizer=tokenizer_fingerprint(tokenizer),
        feature_layers=shape.layers or [],
        dtype=shape.dtype,
        device=device.type,  # its numbers are another's only to rounding, as are
        engine=engine.partition(": ")[0],
        matmul_precision=str(numerics()["matmul_precision"]),
        chat_template=settings.chat_template.rpartition(":")[2],
        chat=load_family(settings.chat_template).model_dump(mode="json", exclude_defaults=True),
        loss_mask=settings.loss_mask.value,
        batch_tokens=settings.batch_tokens,
        processes=[len(part) for part in parts],
        tokens=sum(len(row.ids) for row in rows),
        supervised=sum(sum(row.loss_mask) for row in rows),
        rows=digest([row.ids, row.loss_mask] for row in rows),
    )
    plain = GenerationSettings.model_construct(**settings.model_dump())  # a class that pickle finds again
    folders = [(settings.outdir / str(process), part) for process, part in enumerate(parts)]
    places = [(record_file(folder, index), row) for folder, part in folders for index, row in enumerate(part)]
    return Prepared(plain, manifest, shape, places, skipped, engine)


def engine_of(settings: GenerationSettings, longest: int) -> str:
    """``vllm`` with its version, or ``transformers``, with why not vLLM unless it was asked for.

    Raises:
        InputError: vLLM was asked for, and cannot.
    """
    if settings.algorithm == "ids" or settings.engine == "transformers":
        return "transformers"
    why_not = lacks_states(settings.model_path, longest)
    if settings.device is not None:
        why_not = "--device is for transformers"
    elif max(settings.copies or 1, settings.folders) > 1 and not torch.accelerator.is_available():
        why_not = "vLLM takes all cores for one process"
    if why_not is None:
        return f"vllm {installed()}"
    if settings.engine == "vllm":
        raise InputError("command line", "--engine", f"vllm: {why_not}", "--engine transformers")
    return f"transformers: {why_not}"


def encode_rows(settings: GenerationSettings, tokenizer: Any) -> tuple[list[list[Row]], list[str]]:
    """All dialogues, split over the processes, and why some are left out.

    Raises:
        InputError: one that cannot be used, unless ``--on-bad-conversation skip`` says otherwise; or none is left. One
            without an answer is left out in any case.
    """
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    encoder, last = settings.encoder(tokenizer), min(settings.samples, len(conversations) - 1)
    numbers = through(range(last + 1), "tokenizing", settings.progress)
    found = [_encode(conversations, encoder, number, settings.on_bad_conversation) for number in numbers]
    skipped = [row for row in found if isinstance(row, str)]
    if len(skipped) == len(found):
        none = f"none of {len(skipped)} that can be used, the first: {skipped[0]}"
        raise InputError(conversations.source, "rows", none, "at least one dialogue")
    ranges = split_range(last, settings.folders)
    return [[row for row in found[part.start : part.stop] if isinstance(row, Row)] for part in ranges], skipped


def _encode(conversations: Conversations, encoder: Encoder, number: int, on_bad: str) -> Row | str:
    """A dialogue, or why it is left out."""
    place = f"row {conversations.order[number]}"
    try:
        encoded = encoder(conversations.messages(number))
    except ConversationError as error:
        if on_bad == "fail":
            expected = "a dialogue that can be used; --on-bad-conversation skip leaves it out"
            raise InputError(conversations.source, place, error, expected) from error
        return f"{place}: {error}"
    if not any(encoded.loss_mask):  # a record that would teach nothing
        return f"{place}: no token of an answer"
    return Row(number, encoded.ids, encoded.loss_mask, encoded.cut)


def summary(prepared: Prepared) -> list[str]:
    """What the run will take, in lines."""
    manifest, shape, skipped, lengths = prepared.manifest, prepared.shape, prepared.skipped, prepared.lengths
    share = manifest.supervised / manifest.tokens
    longer = [length for length in lengths if shape.positions is not None and length > shape.positions]
    lines = [f"skipped {reason}" for reason in skipped[:SHOWN]]
    counts = f"{len(lengths):,} dialogues, {manifest.tokens:,} tokens, {share:.0%} of them in the loss"
    lines.append(f"{counts}, {len(skipped)} skipped")
    cut = sum(row.cut for _, row in prepared.places)
    if cut:
        lines.append(f"{cut:,} answers were cut where they were made; the end of turn after them is in no loss")
    if longer:  # features of tokens that the verifier was not made for are of little worth, and no library says so
        found = f"{len(longer):,} of them longer than the verifier's {shape.positions:,} positions"
        lines.append(f"{found}, up to {max(longer):,} tokens; --max-length {shape.positions} cuts them")
    by = f" by {prepared.engine}" if shape.hidden_size else ""
    lines.append(f"{shape}, {shape.bytes_of(1000) // 1000:,} bytes a token{by}")
    return [*lines, f"{gigabytes(prepared.disk)} of records"]


def memory(prepared: Prepared) -> list[str]:
    """What a copy of the verifier takes, in a line; nothing where it is not run."""
    shape, settings = prepared.shape, prepared.settings
    if not shape.hidden_size:
        return []
    weights = shape.item_bytes * verifier_parameters(settings.model_path)
    states = states_bytes(settings.model_path, shape.item_bytes, max(settings.batch_tokens, *prepared.lengths))
    held = f"verifier {gigabytes(weights)}, hidden states {gigabytes(states)}"
    return [f"memory of a copy of the verifier, at least: {gigabytes(weights + states)} ({held})"]


def generate(settings: GenerationSettings) -> None:
    """Write all records, what is there from an interrupted run stays; or, for a dry run, say what it takes.

    Raises:
        InputError: see :func:`prepare`; too few devices or too little room; the directory is in use; or a copy of the
            verifier failed, whose message stands above.
    """
    if settings.dry_run:
        prepared = prepare(settings)
        say("\n".join([*summary(prepared), *memory(prepared)]))
        return
    fix_numerics()
    check_output(settings.outdir, "out")
    settings = settings.spread()
    copies = settings.checked_copies()
    prepared = prepare(settings)
    say("\n".join(summary(prepared)))
    check_output(settings.outdir, "out", prepared.disk - bytes_in(settings.outdir))
    write_or_check(settings.outdir, prepared.manifest)
    write(prepared, copies)
    say(f"records in {settings.outdir}")


def bytes_in(folder: Path) -> int:
    """Of everything below ``folder``, which a run that goes on need not write again."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write(prepared: Prepared, copies: int) -> None:
    """Send what is not there yet through the verifier, bucket by bucket, and write it.

    Raises:
        InputError: the directory is in use, the verifier cannot be loaded, or a record cannot be written.
    """
    settings, manifest, places, lengths = prepared.settings, prepared.manifest, prepared.places, prepared.lengths
    lock = DirectoryLock(settings.outdir, "out")
    try:
        for folder in {file.parent for file, _ in places}:
            folder.mkdir(exist_ok=True)
            sweep(folder)
        whole = [is_whole(file, manifest.info(row)) for file, row in places]
        buckets = [[*bucket] for bucket in length_buckets(lengths, settings.batch_tokens)]
        windows = [[places[at] for at in bucket] for bucket in buckets if not all(whole[at] for at in bucket)]
        writer = partial(open_writer, settings, manifest, max(lengths))
        total, started = sum(len(row.ids) for window in windows for _, row in window), time.monotonic()
        devices = settings.tensor_parallel if settings.device is None else None
        with (
            Work("records: tokens", total, shown=settings.progress) as work,
            closing(through_copies(writer, windows, copies, devices)) as written,
        ):
            for tokens in written:
                work.add(tokens)
        if windows:
            seconds = time.monotonic() - started
            say(f"{total:,} tokens in {seconds:.1f} s, {total / seconds:,.0f} tok/s")
    finally:
        lock.release()


def open_writer(settings: GenerationSettings, manifest: Manifest, longest: int, copy: int) -> Callable[[Window], int]:
    """What writes the records of a window and counts their tokens, of which a dialogue has ``longest`` at most.

    Raises:
        InputError: a process of a command that was killed is still at work, or the verifier cannot be loaded.
    """
    fix_numerics()
    lock = DirectoryLock(settings.outdir, "out", f".{copy}.lock")
    read = _reader(settings, manifest, longest)

    def write_window(window: Window) -> int:
        assert lock.release.alive  # for as long as this writes
        ids = [torch.tensor(row.ids) for _, row in window]
        for (file, row), row_ids, features in zip(window, ids, read(ids), strict=True):
            tensors = {"input_ids": row_ids, **features, "loss_mask": torch.tensor(row.loss_mask)}
            write_record(file, tensors, manifest.info(row))
        return sum(map(len, ids))

    return write_window


def _reader(settings: GenerationSettings, manifest: Manifest, longest: int) -> Read:
    layers, model, devices = manifest.feature_layers or None, settings.model_path, settings.tensor_parallel or 1
    if manifest.algorithm == "ids":
        return lambda dialogues: [{} for _ in dialogues]
    if manifest.engine.startswith("vllm"):
        with Work("vLLM starts"):
            return VllmReader(model, layers, manifest.dtype, longest, manifest.batch_tokens, devices)
    return FeatureReader(load_verifier(model, manifest.dtype, settings.device, devices), layers)


def length_buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, the longest first, each at most ``batch_tokens`` with its padding.

    A batch has at least one dialogue. The batches depend on nothing else, so that a run that was interrupted makes
    the same ones: sums in a matrix product may depend on what else is in it.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
