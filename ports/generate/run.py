"""A generation run: dialogues to ids, what it will take, then one or several processes that write records.

Flags of the prototypes' ``ge_data.allocation`` have their names.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ports.commands import exit_code, printable_lines
from ports.errors import InputError
from ports.files import check_output, check_outside, gigabytes
from ports.generate.chat import Encoder, LossMask
from ports.generate.conversations import ConversationError, Conversations, load_conversations, split_range
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
from ports.training.stop import end_with_parent
from ports.verifier.config import verifier_config
from ports.verifier.fingerprint import verifier_fingerprint
from ports.verifier.interfaces import installed, lacks_states
from ports.verifier.loading import load_verifier
from ports.verifier.tokenizer import open_tokenizer, tokenizer_fingerprint
from ports.verifier.vllm import VllmReader

SHOWN = 10
"""Skipped dialogues that are named; all are counted."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

Read = Callable[[Sequence[Tensor]], list[dict[str, Tensor]]]
"""Features of dialogues."""


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
    total_gpus: int = Field(1, ge=1, description="devices to share out; without any, the number of processes")
    gpus_per_model: int = Field(1, ge=1, description="devices that one process spreads the verifier over")

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
    on_bad_conversation: Literal["fail", "skip"] = Field("fail", description="a dialogue that cannot be used")
    progress: bool = Field(True, description="show progress bars")

    @field_validator("dataset", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        """The prototypes spell ultrachat in two ways."""
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> GenerationSettings:
        if self.total_gpus % self.gpus_per_model:
            raise ValueError(f"gpus_per_model {self.gpus_per_model} does not divide total_gpus {self.total_gpus}")
        if self.prototype is not None:
            given = sorted({"chat_template", "loss_mask", "leading_space"} & self.model_fields_set)
            if given:
                raise ValueError(f"prototype says what {given[0]} is: one of the two")
            self.chat_template, self.loss_mask, self.leading_space = self.prototype, LossMask.PROTOTYPE, True
        return self

    @property
    def processes(self) -> int:
        """How many processes share the rows."""
        return self.total_gpus // self.gpus_per_model

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a dialogue becomes tokens."""
        space = self.leading_space and self.dataset == "sharegpt"
        return Encoder(tokenizer, load_family(self.chat_template), self.loss_mask, space, self.max_length)


@dataclass(frozen=True)
class Task:
    """What one process needs to know. ``index`` numbers it and its folder."""

    settings: GenerationSettings
    manifest: Manifest
    index: int
    rows: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where its records go."""
        return self.settings.outdir / str(self.index)


@dataclass(frozen=True)
class Prepared:
    """A run that has not begun: ``tasks`` of the processes that have rows; ``skipped`` says why rows were left out.

    ``engine`` is what reads the features, and why it does.
    """

    manifest: Manifest
    shape: Geometry
    tasks: list[Task]
    skipped: list[str]
    engine: str

    @property
    def lengths(self) -> list[int]:
        """Tokens of every dialogue."""
        return [len(row.ids) for task in self.tasks for row in task.rows]

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
    tasks = [Task(plain, manifest, index, part) for index, part in enumerate(parts) if part]
    return Prepared(manifest, shape, tasks, skipped, engine)


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
    elif settings.total_gpus > 1 and not torch.accelerator.is_available():
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
    ranges = split_range(last, settings.processes)
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
    cut = sum(row.cut for task in prepared.tasks for row in task.rows)
    if cut:
        lines.append(f"{cut:,} answers were cut where they were made; the end of turn after them is in no loss")
    if longer:  # features of tokens that the verifier was not made for are of little worth, and no library says so
        found = f"{len(longer):,} of them longer than the verifier's {shape.positions:,} positions"
        lines.append(f"{found}, up to {max(longer):,} tokens; --max-length {shape.positions} cuts them")
    by = f" by {prepared.engine}" if shape.hidden_size else ""
    lines.append(f"{shape}, {shape.bytes_of(1000) // 1000:,} bytes a token{by}")
    return [*lines, f"{gigabytes(prepared.disk)} of records"]


def generate(settings: GenerationSettings) -> None:
    """Write all records; what is there from an interrupted run stays.

    Raises:
        InputError: see :func:`prepare`; too few devices or too little room; or a process failed, whose message stands
            above.
    """
    fix_numerics()
    visible = torch.accelerator.device_count()
    if settings.device is None and 0 < visible < settings.total_gpus:
        raise InputError("command line", "--total-gpus", settings.total_gpus, f"at most {visible}, the visible devices")
    check_output(settings.outdir, "out")
    prepared = prepare(settings)
    say("\n".join(summary(prepared)))
    check_output(settings.outdir, "out", prepared.disk - bytes_in(settings.outdir))
    write_or_check(settings.outdir, prepared.manifest)
    if len(prepared.tasks) == settings.gpus_per_model == 1:
        work(prepared.tasks[0])
    else:
        _in_processes(prepared.tasks)
    say(f"records in {settings.outdir}")


def bytes_in(folder: Path) -> int:
    """Of everything below ``folder``, which a run that goes on need not write again."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _in_processes(tasks: Sequence[Task]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run_process, args=(task,)) for task in tasks]
    for task, process in zip(tasks, processes):
        with _only_visible(task):
            process.start()
    for process in processes:
        process.join()
    failed = [task.index for task, process in zip(tasks, processes) if process.exitcode]
    if failed:
        expected = "processes that end well; the same command goes on where they stopped"
        raise InputError(tasks[0].settings.outdir, "processes", f"{failed} failed", expected)


@contextmanager
def _only_visible(task: Task) -> Iterator[None]:
    """A process that is started here sees its own devices alone, from its first import on, which may count them."""
    before = os.environ.copy()
    if task.settings.device is None:
        os.environ[VISIBLE] = ",".join(_own_devices(task.index, task.settings.gpus_per_model))
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        os.environ.update(before)


def _run_process(task: Task) -> None:
    """:func:`work` in a process of its own."""
    end_with_parent()
    fix_numerics()
    sys.exit(exit_code(lambda: work(task)))


def _own_devices(index: int, count: int) -> list[str]:
    """The ``index``-th group of ``count`` devices, out of those that this command may see."""
    first, given = index * count, os.environ.get(VISIBLE)
    if given is None:
        return [str(device) for device in range(first, first + count)]
    return given.split(",")[first : first + count]


def work(task: Task) -> None:
    """Send what is not there yet through the verifier, bucket by bucket, and write it.

    Raises:
        InputError: the folder is in use, the verifier cannot be loaded, or a record cannot be written.
    """
    settings, manifest = task.settings, task.manifest
    lock = DirectoryLock(task.folder, "out")
    try:
        sweep(task.folder)
        whole = [is_whole(record_file(task.folder, index), manifest.info(row)) for index, row in enumerate(task.rows)]
        buckets = length_buckets([len(row.ids) for row in task.rows], settings.batch_tokens)
        buckets = [bucket for bucket in buckets if not all(whole[index] for index in bucket)]
        if buckets and manifest.algorithm == "ids":
            _write(task, buckets, lambda dialogues: [{} for _ in dialogues])
        elif buckets and manifest.engine.startswith("vllm"):
            longest, devices = max(len(row.ids) for row in task.rows), settings.gpus_per_model
            layers, model = manifest.feature_layers or None, settings.model_path
            with Work("vLLM starts"):
                reader = VllmReader(model, layers, manifest.dtype, longest, manifest.batch_tokens, devices)
            _write(task, buckets, reader)
        elif buckets:
            spread = settings.gpus_per_model > 1 and torch.accelerator.is_available()
            model = load_verifier(settings.model_path, manifest.dtype, settings.device, spread)
            _write(task, buckets, FeatureReader(model, manifest.feature_layers or None))
    finally:
        lock.release()


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


def _write(task: Task, buckets: Sequence[Sequence[int]], read: Read) -> None:
    started, name = time.monotonic(), f"process {task.index}"
    total = sum(len(task.rows[index].ids) for bucket in buckets for index in bucket)
    with Work(f"{name}: tokens", total, shown=task.settings.progress) as work:
        for bucket in buckets:
            ids = [torch.tensor(task.rows[index].ids) for index in bucket]
            for index, row_ids, features in zip(bucket, ids, read(ids), strict=True):
                row = task.rows[index]
                tensors = {"input_ids": row_ids, **features, "loss_mask": torch.tensor(row.loss_mask)}
                write_record(record_file(task.folder, index), tensors, task.manifest.info(row))
                work.add(len(row_ids))
    seconds = time.monotonic() - started
    say(f"{name}: {total:,} tokens in {seconds:.1f} s, {total / seconds:,.0f} tok/s")
