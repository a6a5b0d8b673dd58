"""Where things lie: documents and padding in a row, tensors on devices, states on processes.

Which way the port takes depends on it, and the wrong way is silently slow or silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import DistributedType
from speculators.models.eagle3 import Eagle3DraftModel
from torch import nn

from parity.compare import Subject, compare_value
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row
from ports.eagle3.objective import Eagle3Objective
from ports.hass.train import clip_by_value
from ports.training.attention.documents import documents_of
from ports.training.checkpoint.keeper import sharding
from ports.training.data.features import FeatureReader
from ports.training.loss.normalisation import GlobalNormalisation, build_normalisation


def check_places(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """Rows of the corners check."""
    yield from _padding(subject)
    yield from _unnumbered(subject)
    yield from _devices(evidence, subject)
    yield from _processes(subject)


def _padding(subject: Subject) -> Iterator[Row]:
    """Is every row one document with its padding behind it? Only then does attention need no mask."""
    masks = {"none": [[1, 1, 1]], "behind": [[1, 1, 1], [1, 0, 0]], "before": [[1, 1, 1], [0, 1, 1]]}
    masks |= {"between": [[1, 0, 1], [1, 1, 1]], "all": [[1, 1, 1], [0, 0, 0]], "packed": [[1, 1, 2]]}
    for name, mask in masks.items():
        found, expected = documents_of(torch.tensor(mask)), name not in ("before", "between", "packed")
        yield compare_value(subject, "padding", name, expected, found.right_padded)
        counted = [[0, 1, 0]] if name == "packed" else [[0, 1, 2]]
        yield compare_value(subject, "padding", f"{name}: positions", counted, found.positions.tolist())
        first = [[True, False, True]] if name == "packed" else None
        yield compare_value(
            subject, "padding", f"{name}: first", first, None if found.first is None else found.first.tolist()
        )


def _unnumbered(subject: Subject) -> Iterator[Row]:
    """Rows whose documents are not numbered 1, 2, 3 are refused, with the first five numbers."""
    refused = {
        "several rows": ([[1, 1], [1, 2]], "(2, 2) with numbers [1, 2]"),
        "out of order": ([[1, 3, 2, 4, 5, 6]], "(1, 6) with numbers [1, 3, 2, 4, 5]"),
        "the first again": ([[1, 2, 1]], "(1, 3) with numbers [1, 2, 1]"),
        "padding before": ([[0, 2]], "(1, 2) with numbers [0, 2]"),
        "from 2 on": ([[2, 3]], "(1, 2) with numbers [2, 3]"),
        "several numbered rows": ([[1, 2], [3, 4]], "(2, 2) with numbers [1, 2, 3, 4]"),
    }
    for name, (mask, numbers) in refused.items():
        try:
            found = str(documents_of(torch.tensor(mask)))
        except ValueError as error:
            found = str(error)
        said = f"document_ids: found {numbers}, expected one row [1, T] numbered 1, 2, 3, .."
        yield compare_value(subject, "padding", name, said, found)


def _processes(subject: Subject) -> Iterator[Row]:
    """Rows are counted together where there is somebody to count with; a checkpoint names what shards its states."""
    for kind, count in (("rank", 1), ("rank", 2), ("global", 1), ("global", 2), ("global", 3)):
        together = kind == "global" and count > 1
        word = kind.upper().lower()  # a string of its own, as a command line gives
        found = build_normalisation(word, SimpleNamespace(num_processes=count, device="cpu"))
        yield compare_value(subject, "processes", f"{kind} of {count}", together, type(found) is GlobalNormalisation)
    module = nn.Linear(3, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, -2.0, 0.25]])
    norm = clip_by_value(SimpleNamespace(distributed_type=DistributedType.FSDP), module)
    found_grads = [round(norm, 4), *module.weight.grad[0].tolist()]
    yield compare_value(subject, "processes", "clipped in shards", [3.6142, 0.5, -0.5, 0.25], found_grads)
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP):
        found_name = sharding(SimpleNamespace(distributed_type=kind))
        yield compare_value(subject, "processes", kind.value, "FSDP2" if kind.value == "FSDP" else "none", found_name)


class _Spread:
    """A verifier whose layers lie apart."""

    device = "cpu"

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        states = [torch.zeros(1, 2, 3, device=device) for device in ("cpu", "cpu", "cpu", "meta")]
        return SimpleNamespace(hidden_states=states)


def _devices(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """What lies on several devices meets where the verifier's last state lies; ``meta`` stands for another one."""
    (fields,) = FeatureReader(_Spread(), (0, 1, 2))([torch.zeros(2, dtype=torch.int64)])
    found = [str(fields[name].device) for name in ("hidden_state", "target")]
    yield compare_value(subject, "devices", "features", ["meta", "meta"], found)
    if isinstance(evidence.draft, Eagle3DraftModel):
        whole = Eagle3Objective(evidence.draft, 1)
        for device in ("cpu", "meta"):
            head = whole.verifier(torch.empty(0, device=device)).head
            yield compare_value(subject, "devices", f"verifier's head on {device}", device, str(head.device))
