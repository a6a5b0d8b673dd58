"""Datasets, collation and the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.data.noise import Draw, add_uniform_noise
from ports.training.data.record_info import RecordInfo
from ports.training.data.records import Record, read_record
from ports.training.data.samples import Sample, make_sample
from ports.training.data.workers import loader_context, start_worker

T = TypeVar("T")

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``loss_mask`` [B, T] int64; ``features`` [B, T, F], ``target`` [B, T, h] float.

A packed batch has one row, and ``document_ids`` [1, T] int64: the number of the sample, from 1 on.
"""


@dataclass
class RecordDataset(Dataset["Sample | Skipped"]):
    """Records on disk as training samples, with noise on the features when ``noise`` is set.

    With ``skip_bad`` a record that cannot be used is visited as :class:`Skipped` instead of ending the run. Records
    that know where they come from must come from where ``like`` does.
    """

    files: Sequence[Path]
    widths: Mapping[str, int]
    vocab_size: int
    max_len: int = 8192
    alignment: Alignment = Alignment.PROTOTYPE
    noise: bool = True
    draw: Draw = field(default=torch.rand_like)
    skip_bad: bool = False
    like: RecordInfo | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.visit(lambda: self.sample(index))

    def visit(self, make: Callable[[], T]) -> T | Skipped:
        """What ``make`` gives, or why there is nothing."""
        try:
            return make()
        except InputError as error:
            if not self.skip_bad:
                raise
            return Skipped(str(error))

    def record(self, index: int) -> Record:
        """One checked record, or the InputError that says why there is none."""
        return read_record(self.files[index], self.widths, self.vocab_size, self.like)

    def collate_fn(self, packing: bool = False) -> CollateVisits:
        """Makes a batch of what :meth:`__getitem__` gives."""
        return CollateVisits(self.widths, packing)

    def sample(self, index: int) -> Sample:
        """The sample of one record, or the InputError that says why there is none."""
        return self.sample_of(index, self.record(index))

    def sample_of(self, index: int, record: Record) -> Sample:
        """``record``, number ``index`` of the data, as a sample, with its noise."""
        sample = make_sample(record, self.max_len, self.alignment)
        sample.file = str(self.files[index])
        if self.noise:
            sample.features = add_uniform_noise(sample.features, self.draw)
        return sample


@dataclass(frozen=True)
class Skipped:
    """A record that could not be used, and why."""

    reason: str


@dataclass(frozen=True)
class CollateVisits:
    """Collate for the loop: the batch, ``files`` behind its samples, and the reasons of what was ``skipped``.

    The files of ``empty`` samples, without a row in the loss, are named: they teach nothing, and stay in their batch as
    the prototypes have it.

    A batch without any usable record is one row of one token outside the loss, so that every process takes part in
    every step. With ``packing`` the samples lie end to end in one row.
    """

    widths: Mapping[str, int]
    packing: bool = False

    def __call__(self, visits: Sequence[Sample | Skipped]) -> dict[str, Any]:
        samples = [visit for visit in visits if isinstance(visit, Sample)]
        skipped = [visit.reason for visit in visits if isinstance(visit, Skipped)]
        files = [sample.file for sample in samples]
        empty = [sample.file for sample in samples if not bool(sample.loss_mask.any())]
        batch = (pack if self.packing else collate)(samples or [self._nothing()])
        return {**batch, "files": files, "skipped": skipped, "empty": empty}

    def _nothing(self) -> Sample:
        features = torch.zeros(1, self.widths["hidden_state"])
        target = torch.zeros(1, self.widths.get("target", features.shape[1]))
        return Sample(torch.zeros(1, dtype=torch.int64), features, target, torch.zeros(1, dtype=torch.int64))


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad on the right with zeros to the longest sample; features and targets become float32 whatever their dtype."""
    return {
        "input_ids": _pad([sample.input_ids for sample in samples]),
        "features": _pad([sample.features.float() for sample in samples]),
        "target": _pad([sample.target.float() for sample in samples]),
        "attention_mask": _pad([torch.ones_like(sample.input_ids) for sample in samples]),
        "loss_mask": _pad([sample.loss_mask for sample in samples]),
    }


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


def pack(samples: Sequence[Sample]) -> Batch:
    """One row [1, sum of T] of all samples end to end; types as in :func:`collate`."""
    alone = [collate([sample]) for sample in samples]
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    batch = {name: torch.cat([each[name] for each in alone], dim=1) for name in alone[0]}
    return {**batch, "document_ids": torch.arange(1, len(samples) + 1).repeat_interleave(lengths)[None]}


def rows_mask(batch: Batch) -> Tensor:
    """[B, T]: 0 on padding, 1 on a real position, in a packed row the number of its document."""
    return batch.get("document_ids", batch["attention_mask"])


def build_loader(
    dataset: Any,
    batch_size: int,
    shuffle: bool = True,
    num_workers: int = 0,
    sampler: Sampler[int] | Iterable[int] | None = None,
    packing: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader[Any]:
    """The prototypes' loader: incomplete batches are dropped. A ``sampler`` takes the place of ``shuffle``.

    With ``packing`` the samples of a batch lie end to end in one row instead of being padded to the longest. Every
    worker reads ``prefetch_factor`` batches ahead. Workers start anew in every pass: persistent ones would go on with
    their generators, and a resumed run could not draw the same noise.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle if sampler is None else None,
        sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        collate_fn=dataset.collate_fn(packing),
        multiprocessing_context=loader_context() if num_workers else None,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )
