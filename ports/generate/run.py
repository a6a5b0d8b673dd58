"""A generation run: say what it will take, then let one or several processes work."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ports.errors import InputError
from ports.files import check_output, gigabytes
from ports.generate.manifest import Manifest, write_or_check
from ports.generate.prepare import (
    Geometry,
    Work,
    describe,
    encode_rows,
    geometry,
    say,
)
from ports.generate.settings import GenerationSettings
from ports.generate.worker import Task, run_process, work
from ports.numerics import fix_numerics
from ports.training.data.features import checked_device
from ports.training.verifier import open_tokenizer, verifier_config

SHOWN = 10
"""Skipped dialogues that are named; all are counted."""


@dataclass(frozen=True)
class Prepared:
    """A run that has not begun."""

    settings: GenerationSettings
    work: Work
    shape: Geometry
    manifest: Manifest

    @property
    def disk(self) -> int:
        """Bytes of all records."""
        return sum(self.shape.bytes_of(len(row.ids)) for row in self.work.rows)

    def tasks(self) -> list[Task]:
        """One a process that has rows."""
        plain = GenerationSettings.model_construct(**self.settings.model_dump())  # a class that pickle finds again
        parts = enumerate(self.work.parts)
        return [Task(plain, self.shape, self.manifest, index, part) for index, part in parts if part]


def prepare(settings: GenerationSettings) -> Prepared:
    """Tokenize everything and look at the verifier; nothing is loaded or written.

    Raises:
        InputError: whatever is wrong with dialogues, tokenizer or verifier, or the records would lie among dialogues.
    """
    _refuse_records_among_dialogues(settings)
    device, shape, tokenizer = _device(settings), geometry(settings), open_tokenizer(settings.model_path)
    rows = encode_rows(settings, tokenizer)
    largest, vocab_size = max(max(row.ids) for row in rows.rows), verifier_config(settings.model_path).vocab_size
    if largest >= vocab_size:
        raise InputError(settings.model_path, "tokenizer", f"id {largest}", f"ids below {vocab_size}, the vocabulary")
    return Prepared(settings, rows, shape, describe(settings, rows, shape, tokenizer, device))


def _refuse_records_among_dialogues(settings: GenerationSettings) -> None:
    data = Path(settings.data_path)
    if data.is_dir() and settings.outdir.resolve().is_relative_to(data.resolve()):
        expected = "a directory outside --data_path, all of which is read as dialogues"
        raise InputError(settings.outdir, "outdir", f"inside {data}", expected)


def _device(settings: GenerationSettings) -> str:
    """The kind of device that computes: its numbers are another's only to rounding."""
    if settings.device is not None:
        return checked_device(settings.device).type
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else str(accelerator.type)


def summary(prepared: Prepared) -> list[str]:
    """What the run will take, in lines."""
    manifest, shape = prepared.manifest, prepared.shape
    rows = sum(manifest.processes)
    share = manifest.supervised / manifest.tokens
    skipped = prepared.work.skipped
    return [
        *(f"skipped {reason}" for reason in skipped[:SHOWN]),
        f"{rows:,} dialogues, {manifest.tokens:,} tokens, {share:.0%} of them in the loss, {len(skipped)} skipped",
        *_longer(prepared.work, shape.positions),
        f"{_features(shape)}, {shape.bytes_of(1000) // 1000:,} bytes a token",
        f"{gigabytes(prepared.disk)} of records",
    ]


def _longer(work: Work, positions: int | None) -> list[str]:
    """Features of tokens that the verifier was not made for are of little worth, and no library says so."""
    longer = [len(row.ids) for row in work.rows if positions is not None and len(row.ids) > positions]
    if not longer:
        return []
    found = f"{len(longer):,} of them longer than the verifier's {positions:,} positions, up to {max(longer):,} tokens"
    return [f"{found}; --max_length {positions} cuts them"]


def _features(shape: Geometry) -> str:
    if shape.without_features:
        return "no features"
    return f"features of entries {shape.layers or 'last'} in {shape.dtype}"


def generate(settings: GenerationSettings) -> None:
    """Write all records; what is there from an interrupted run stays.

    Raises:
        InputError: see :func:`prepare`; too little room; or a process failed, whose message stands above.
    """
    fix_numerics()
    check_output(settings.outdir, "outdir")
    prepared = prepare(settings)
    for line in summary(prepared):
        say(line)
    check_output(settings.outdir, "outdir", prepared.disk)
    write_or_check(settings.outdir, prepared.manifest)
    started = time.monotonic()
    tasks = prepared.tasks()
    tokens = work(tasks[0]) if len(tasks) == 1 else _in_processes(tasks)
    seconds = time.monotonic() - started
    say(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tok/s; records in {settings.outdir}")


def _in_processes(tasks: list[Task]) -> int:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_process, args=(task,)) for task in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [task.index for task, process in zip(tasks, processes) if process.exitcode]
    if failed:
        expected = "processes that end well; the same command goes on where they stopped"
        raise InputError(tasks[0].settings.outdir, "processes", f"{failed} failed", expected)
    return sum(len(row.encoded.ids) for task in tasks for row in task.rows)
