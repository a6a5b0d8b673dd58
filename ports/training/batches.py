"""Datasets, collation and the loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from ports.training.alignment import Alignment
from ports.training.noise import Draw, add_uniform_noise
from ports.training.records import read_record
from ports.training.samples import Sample, make_sample

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``loss_mask`` [B, T] int64; ``features`` [B, T, F], ``target`` [B, T, h] float."""


@dataclass
class RecordDataset(Dataset[Sample]):
    """Records on disk as training samples, with noise on the features when ``noise`` is set."""

    files: Sequence[Path]
    widths: Mapping[str, int]
    vocab_size: int
    max_len: int = 8192
    alignment: Alignment = Alignment.PROTOTYPE
    noise: bool = True
    draw: Draw = field(default=torch.rand_like)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        record = read_record(self.files[index], self.widths, self.vocab_size)
        sample = make_sample(record, self.max_len, self.alignment)
        if self.noise:
            sample.features = add_uniform_noise(sample.features, self.draw)
        return sample


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


def build_loader(
    dataset: RecordDataset,
    batch_size: int,
    shuffle: bool = True,
    num_workers: int = 0,
    sampler: Sampler[int] | Iterable[int] | None = None,
) -> DataLoader[Sample]:
    """The prototypes' loader: incomplete batches are dropped. A ``sampler`` takes the place of ``shuffle``."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle if sampler is None else None,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )
