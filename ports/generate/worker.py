"""One process: its rows through the verifier, bucket by bucket, into files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ports.commands import exit_code
from ports.generate.buckets import length_buckets
from ports.generate.manifest import Manifest
from ports.generate.prepare import Geometry, Row, info_of
from ports.generate.records import is_whole, record_file, write_record
from ports.generate.settings import GenerationSettings
from ports.numerics import fix_numerics
from ports.training.checkpoint import DirectoryLock, sweep
from ports.training.data.features import FeatureReader, load_verifier
from ports.training.data.workers import end_with_parent

Read = Callable[[Sequence[Tensor]], list[dict[str, Tensor]]]
"""Features of dialogues."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Task:
    """What one process needs to know. ``index`` numbers it and its folder."""

    settings: GenerationSettings
    shape: Geometry
    manifest: Manifest
    index: int
    rows: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where its records go."""
        return self.settings.outdir / str(self.index)


def work(task: Task) -> int:
    """Write what is not there yet; returns the tokens that went through the verifier.

    Raises:
        InputError: the folder is in use, the verifier cannot be loaded, or a record cannot be written.
    """
    lock = DirectoryLock(task.folder, "outdir")
    try:
        sweep(task.folder)
        buckets = [bucket for bucket in _buckets(task) if not all(_done(task, index) for index in bucket)]
        if not buckets:
            return 0
        if task.shape.without_features:
            return _run(task, buckets, lambda dialogues: [{} for _ in dialogues])
        spread = task.settings.gpus_per_model > 1 and torch.accelerator.is_available()
        model = load_verifier(task.settings.model_path, task.shape.dtype, task.settings.device, spread)
        return _run(task, buckets, FeatureReader(model, task.shape.layers))
    finally:
        lock.release()


def _buckets(task: Task) -> list[list[int]]:
    return length_buckets([len(row.encoded.ids) for row in task.rows], task.settings.batch_tokens)


def _done(task: Task, index: int) -> bool:
    return is_whole(record_file(task.folder, index), info_of(task.manifest, task.rows[index]))


def _run(task: Task, buckets: list[list[int]], read: Read) -> int:
    total = sum(len(task.rows[index].encoded.ids) for bucket in buckets for index in bucket)
    show = task.settings.progress
    with tqdm(total=total, desc=f"process {task.index}", unit="tok", unit_scale=True, disable=not show) as bar:
        for bucket in buckets:
            ids = [torch.tensor(task.rows[index].encoded.ids) for index in bucket]
            for index, row_ids, features in zip(bucket, ids, read(ids), strict=True):
                _write(task, index, {"input_ids": row_ids, **features})
                bar.update(len(row_ids))
    return total


def _write(task: Task, index: int, tensors: dict[str, Tensor]) -> None:
    row = task.rows[index]
    mask = torch.tensor(row.encoded.loss_mask)
    write_record(record_file(task.folder, index), {**tensors, "loss_mask": mask}, info_of(task.manifest, row))


def _own_devices(index: int, count: int) -> list[str]:
    """The ``index``-th group of ``count`` devices, out of those that this command may see."""
    first, given = index * count, os.environ.get(VISIBLE)
    if given is None:
        return [str(device) for device in range(first, first + count)]
    return given.split(",")[first : first + count]


def run_process(task: Task) -> None:
    """:func:`work` in a process of its own: only its devices are visible."""
    end_with_parent()
    if task.settings.device is None:
        os.environ[VISIBLE] = ",".join(_own_devices(task.index, task.settings.gpus_per_model))
    fix_numerics()
    sys.exit(exit_code(lambda: _timed(task)))


def _timed(task: Task) -> None:
    started = time.monotonic()
    tokens = work(task)
    seconds = time.monotonic() - started
    print(f"process {task.index}: {tokens} tokens, {tokens / seconds:.0f} tok/s", file=sys.stderr, flush=True)
