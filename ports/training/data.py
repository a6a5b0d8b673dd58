"""From records to batches: samples, noise, padding or packing, the order of a pass and its loader.

A sample pairs a feature with the next token: position p holds (token x[p+1], features g[p]) and is trained towards the
verifier's distribution after x[p+1].
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.records import Record, RecordInfo, plain_tensor, read_record, record_header
from ports.training.stop import loader_context, start_worker

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``loss_mask`` [B, T] int64; ``features`` [B, T, F], ``target`` [B, T, h] float.

A packed batch has one row, and ``document_ids`` [1, T] int64: the number of the sample, from 1 on.
"""

Draw = Callable[[Tensor], Tensor]
"""Takes a tensor [1, T, F], returns uniforms in [0, 1) of its shape and dtype."""

STD = 0.2
REFERENCE_LENGTH = 512

POOL = 64
"""Batches that are sorted together by length: more would pad less, and leave less to chance."""

ALIGNMENT = 64
"""Bytes. Torch's own memory lies so, a mapped record need not; products round by where their numbers lie."""


@dataclass
class Sample:
    """One row of a batch: ``input_ids`` and ``loss_mask`` [T] int64, ``features`` [T, F], ``target`` [T, h].

    Floats have the record's dtype. ``file`` is where it was read from.
    """

    input_ids: Tensor
    features: Tensor
    target: Tensor
    loss_mask: Tensor
    file: str = ""


@dataclass(frozen=True)
class Skipped:
    """A record that could not be used, or is not needed again, and why."""

    reason: str


def make_sample(record: Record, max_len: int, alignment: Alignment) -> Sample:
    """Cut a record to ``max_len`` tokens and shift ids and target one to the left, zero at the end.

    The target is the record's ``target`` (Eagle3) or, without one, its clean ``hidden_state`` (HASS). The loss mask
    stays unshifted with its last entry off (``prototype``), or moves with the ids (``chain``, as Speculators has it).
    """
    cut = {name: value[:max_len] for name, value in record.items()}
    mask = cut["loss_mask"].to(torch.int64)
    if alignment is Alignment.CHAIN:
        mask = _shift(mask)
    return Sample(
        input_ids=_shift(cut["input_ids"]),
        features=cut["hidden_state"],
        target=_shift(cut.get("target", cut["hidden_state"])),
        loss_mask=torch.cat([mask[:-1], torch.zeros_like(mask[-1:])]),
    )


def _shift(values: Tensor) -> Tensor:
    """``values[p+1]`` at p, zero at the last position."""
    return torch.cat([values[1:], torch.zeros_like(values[:1])])


def add_uniform_noise(features: Tensor, draw: Draw = torch.rand_like) -> Tensor:
    """``features + (u - 0.5) * 0.2 * 512 / T`` for features [T, F], in their dtype; T is the sample's own length.

    The uniforms have a leading batch axis of one, as the prototypes draw them, so that a recorded draw fits.
    """
    uniforms = draw(features[None])[0]
    return features + (uniforms - 0.5) * STD * REFERENCE_LENGTH / features.shape[0]


def keyed_draw(seed: int, epoch: int, sample: int) -> Draw:
    """Uniforms that these three numbers decide alone (and the kind of device), whatever was drawn before."""
    digest = hashlib.sha256(f"seed {seed}, pass {epoch}, sample {sample}".encode()).digest()
    key = int.from_bytes(digest[:8], "big")

    def draw(like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed(key)
        return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    return draw


@dataclass
class RecordDataset(Dataset["Sample | Skipped"]):
    """Records on disk as training samples, with noise on the features when ``noise`` is set.

    The noise is what ``draw`` gives at every visit, or with a ``noise_seed`` what :func:`keyed_draw` does. With
    ``skip_bad`` a record that cannot be used is visited as :class:`Skipped` instead of ending the run. Records that
    know where they come from must come from where ``like`` does. ``numbers`` are a part's own, in the whole data.
    """

    files: Sequence[Path]
    widths: Mapping[str, int]
    vocab_size: int
    max_len: int = 8192
    alignment: Alignment = Alignment.PROTOTYPE
    noise: bool = True
    draw: Draw = field(default=torch.rand_like)
    noise_seed: int | None = None
    skip_bad: bool = False
    like: RecordInfo | None = None
    numbers: Sequence[int] | None = None
    _epoch: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)
    _batch_size: int = field(default=1, init=False)
    _visits: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.visit(lambda: self._pass_over(index) if self._was_seen() else self.sample(index))

    def start_pass(self, epoch: int, seen: int = 0, batch_size: int = 1, bad: bool = False) -> None:
        """What is read next is pass ``epoch``, whose first ``seen`` batches a resumed run has trained on before.

        Of those nothing is needed but the noise they drew, for which headers are read; keyed noise, or none, needs
        nothing. Where some were ``bad``, which drew nothing, only reading again tells them.
        """
        self._epoch, self._batch_size, self._visits = epoch, batch_size, 0
        self._seen = 0 if bad and self._draws else seen

    @property
    def _draws(self) -> bool:
        """Does a visit take noise from a generator that goes on to the next?"""
        return self.noise and self.noise_seed is None

    def _was_seen(self) -> bool:
        """Loader processes take the batches of a pass in turn."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._visits += 1
        return self._visits <= self._batch_size * len(range(first, self._seen, step))

    def _pass_over(self, index: int) -> Skipped:
        if self._draws:
            self._draw_on_host(self.clean_features(index)[None])
        return Skipped("trained on before")

    def clean_features(self, index: int) -> Tensor:
        """[T, F] in the dtype that noise is drawn in; nothing but shape and dtype may be used, no number is checked."""
        file = self.files[index]
        return plain_tensor(file, record_header(file), "hidden_state")[: self.max_len]

    def visit(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or why there is nothing."""
        try:
            return make()
        except InputError as error:
            if not self.skip_bad:
                raise
            return Skipped(str(error))

    def number(self, index: int) -> int:
        """Of record ``index`` of these, in all the data."""
        return index if self.numbers is None else self.numbers[index]

    def record(self, index: int) -> Record:
        """One checked record, or the InputError that says why there is none."""
        return read_record(self.files[index], self.widths, self.vocab_size, self.like)

    def sample(self, index: int) -> Any:
        """What :meth:`batch_of` makes a row of, or the InputError that says why there is nothing."""
        return self.sample_of(index, self.record(index))

    def sample_of(self, index: int, record: Record) -> Sample:
        """``record``, the one at ``index``, as a sample, with its noise."""
        sample = make_sample(record, self.max_len, self.alignment)
        sample.file = str(self.files[index])
        if self.noise:
            keyed = None if self.noise_seed is None else keyed_draw(self.noise_seed, self._epoch, self.number(index))
            sample.features = add_uniform_noise(sample.features, keyed or self._draw_on_host)
        return sample

    def _draw_on_host(self, like: Tensor) -> Tensor:
        """Wherever the features lie: the host's generators are what a resumed run is held to."""
        return self.draw(torch.empty_like(like, device="cpu")).to(like.device)

    def batch_of(self, visits: Sequence[Any], packing: bool = False) -> dict[str, Any]:
        """The batch of what :meth:`__getitem__` gave, ``files`` behind its samples, and why some were ``skipped``.

        Features and targets keep their dtype. The files of ``empty`` samples, without a row in the loss, are named:
        they teach nothing, and stay in their batch as the prototypes have it.

        A batch without any usable record is one row of one token outside the loss, so that every process takes part in
        every step. With ``packing`` the samples lie end to end in one row.
        """
        samples = [visit for visit in visits if isinstance(visit, Sample)]
        skipped = [visit.reason for visit in visits if isinstance(visit, Skipped)]
        files = [sample.file for sample in samples]
        empty = [sample.file for sample in samples if not bool(sample.loss_mask.any())]
        batch = (pack if packing else pad)(samples or [self._nothing()])
        return {**batch, "files": files, "skipped": skipped, "empty": empty}

    def _nothing(self) -> Sample:
        features = torch.zeros(1, self.widths["hidden_state"])
        target = torch.zeros(1, self.widths.get("target", features.shape[1]))
        return Sample(torch.zeros(1, dtype=torch.int64), features, target, torch.zeros(1, dtype=torch.int64))


def collate(samples: Sequence[Sample]) -> Batch:
    """A padded batch as an objective takes it: features and targets in float32 whatever the records' dtype."""
    return in_float32(pad(samples))


def pad(samples: Sequence[Sample]) -> Batch:
    """Pad on the right with zeros to the longest sample; a single one is not copied."""
    names = ("input_ids", "features", "target", "loss_mask")
    batch = {name: _pad([getattr(sample, name) for sample in samples]) for name in names}
    return {**batch, "attention_mask": _pad([torch.ones_like(sample.input_ids) for sample in samples])}


def _pad(rows: Sequence[Tensor]) -> Tensor:
    if len(rows) == 1:
        return rows[0][None]
    dtype = reduce(torch.promote_types, (row.dtype for row in rows))
    return pad_sequence([row.to(dtype) for row in rows], batch_first=True)


def pack(samples: Sequence[Sample]) -> Batch:
    """One row [1, sum of T] of all samples end to end; types as in :func:`pad`."""
    alone = [pad([sample]) for sample in samples]
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    batch = {name: torch.cat([each[name] for each in alone], dim=1) for name in alone[0]}
    return {**batch, "document_ids": torch.arange(1, len(samples) + 1).repeat_interleave(lengths)[None]}


def in_float32(batch: Batch) -> Batch:
    """``batch`` itself, its features and targets in float32 now and aligned as torch's own memory is."""
    for name in ("features", "target"):
        value = batch[name]
        batch[name] = value.to(torch.float32, copy=value.data_ptr() % ALIGNMENT != 0)
    return batch


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
        collate_fn=partial(dataset.batch_of, packing=packing),
        multiprocessing_context=loader_context() if num_workers else None,
        worker_init_fn=start_worker,
        pin_memory=num_workers > 0 and torch.cuda.is_available(),
        drop_last=True,
    )


class LengthGroupedSampler(Sampler[int]):
    """A pass over all samples: shuffled, sorted by length within pools of batches, and the batches shuffled.

    The order depends on the seed and the number of the pass alone, so that every process draws the same one and a
    resumed run draws it again; accelerate's loader calls :meth:`set_epoch`. The samples that fill no batch come last,
    where the loader drops them: which they are is drawn before anything is sorted.

    Args:
        sizes: one number a sample that grows with its length.
        batch_size: samples of a batch.
        seed: of the run.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, seed: int) -> None:
        self.sizes, self.batch_size, self.seed, self.epoch = sizes, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The number of the pass that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"seed {self.seed}, pass {self.epoch}")
        drawn = list(range(len(self.sizes)))
        generator.shuffle(drawn)
        size, filled = self.batch_size, len(drawn) - len(drawn) % self.batch_size
        pools = (drawn[at : min(at + POOL * size, filled)] for at in range(0, filled, POOL * size))
        ordered = list(chain.from_iterable(sorted(pool, key=self.sizes.__getitem__) for pool in pools))
        batches = [ordered[at : at + size] for at in range(0, filled, size)]
        generator.shuffle(batches)
        yield from chain(*batches, drawn[filled:])


def record_sizes(files: Iterable[Path]) -> list[int]:
    """Bytes on the disk, which grow with a record's tokens; 0 for a file that cannot be read (the loader says why)."""
    return [os.path.getsize(file) if os.path.isfile(file) else 0 for file in files]
