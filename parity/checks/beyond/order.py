"""In which order samples come: files by name, groups of one length, and which verifier layers features are of."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from parity.checks.evidence import Evidence
from parity.compare import Subject, compare_value
from parity.result import Row
from parity.runs.port import SHORTEST, trace_port
from ports.training.data.feature_layers import aux_layer_ids, chosen_layers
from ports.training.data.grouping import LengthGroupedSampler, record_sizes
from ports.training.data.records import list_records

NAMES = ("7.ckpt", "a/data_2.ckpt", "a/data_10.safetensors", "b1/data_1.ckpt", "b02/data_0.ckpt", "data_3.ckpt")
"""In natural order."""

LEFT_OUT = ("a/.data_1.ckpt", "a/data_4.txt")

LAYERS = {3: [3, 2, 1], 4: [3, 2, 1], 5: [3, 2, 4], 6: [3, 4, 5], 8: [3, 5, 6], 32: [3, 17, 30]}
"""Feature layers of verifiers with so many layers: 3, n // 2 + 1 and n - 2, or the nearest distinct ones."""

CHOICES = {"prototype": [3, 17, 30], "speculators": [2, 16, 29], "0,5, 31": [0, 5, 31]}
"""What a user can say about a verifier of 32 layers."""

SIZES = [(index * 37) % 101 for index in range(261)]
"""Of samples in several pools, with some left over, and equal ones among them."""


def check_order(evidence: Evidence, folder: Path) -> list[Row]:
    """Rows of the sources check."""
    subject = evidence.subject("sources")
    return [*_files(subject, folder), *_layers(subject), *_groups(subject), _grouped_run(evidence, subject)]


def _files(subject: Subject, folder: Path) -> Iterator[Row]:
    for name in (*reversed(NAMES), *LEFT_OUT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = [path.relative_to(folder).as_posix() for path in list_records(folder)]
    yield compare_value(subject, "order", "files", list(NAMES), found)
    (folder / NAMES[0]).write_bytes(b"abc")
    sizes = record_sizes([folder / NAMES[0], folder / NAMES[1], folder / "gone.ckpt"])
    yield compare_value(subject, "order", "sizes of files", [3, 0, 0], sizes)


def _layers(subject: Subject) -> Iterator[Row]:
    """Where the rule's own entries are not three, others are named, with a warning."""
    for count, layers in LAYERS.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = aux_layer_ids("verifier", count)
        rule = {3, count // 2 + 1, count - 2}
        expected, own = (layers, len(rule) < 3), (found, bool(warned))
        yield compare_value(subject, "layers", f"of {count}", expected, own)
    for choice, layers in CHOICES.items():
        yield compare_value(subject, "layers", choice, layers, chosen_layers(choice, "verifier", 32))


def _groups(subject: Subject) -> Iterator[Row]:
    first = list(LengthGroupedSampler(SIZES, 2, 0))
    yield compare_value(subject, "order", "groups of 2 before any pass", _grouped(SIZES, 2, 0, 0), first)
    for seed, epoch, size in ((0, 0, 2), (0, 1, 2), (5, 0, 3)):
        sampler = LengthGroupedSampler(SIZES, size, seed)
        sampler.set_epoch(epoch)
        name = f"groups of {size}, seed {seed}, pass {epoch}"
        yield compare_value(subject, "order", name, _grouped(SIZES, size, seed, epoch), list(sampler))
        yield compare_value(subject, "order", f"{name}: length", len(SIZES), len(sampler))


def _grouped(sizes: Sequence[int], size: int, seed: int, epoch: int) -> list[int]:
    """Shuffled; 64 batches at a time sorted; the batches shuffled; what fills no batch at the end."""
    draw, order = random.Random(f"seed {seed}, pass {epoch}"), list(range(len(sizes)))
    draw.shuffle(order)
    whole, batches = len(order) // size * size, []
    for start in range(0, whole, 64 * size):
        pool = sorted(order[start : min(start + 64 * size, whole)], key=sizes.__getitem__)
        batches += [pool[first : first + size] for first in range(0, len(pool), size)]
    draw.shuffle(batches)
    return [index for batch in batches for index in batch] + order[whole:]


def _grouped_run(evidence: Evidence, subject: Subject) -> Row:
    """The first batch of a run with ``--group_by_length`` has the lengths that its files' sizes ask for."""
    case = evidence.case
    files = [case.tmpdir / name for name in case.meta.samples_files]
    first = _grouped([file.stat().st_size for file in files], case.bs, 0, 0)[: case.bs]
    trace = trace_port(case, live=True, shuffle=True, group_by_length=True, noise=False, max_steps=SHORTEST)
    mask = trace.tensors.get("mb0.batch.attention_mask", torch.zeros(0, 0))
    lengths = [len(torch.load(files[index], weights_only=True)["input_ids"]) for index in first]
    return compare_value(subject, "order", "lengths of a grouped batch", lengths, mask.sum(-1).tolist())
