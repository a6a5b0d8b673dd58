"""Where things lie: documents and padding in a row, projections in a module, tensors on devices.

Which way the port takes depends on it, and the wrong way is silently slow or silently wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import DistributedType
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor, nn

from parity.checks.evidence import Evidence
from parity.compare import Subject, compare_value
from parity.result import Row
from ports.eagle3.objective import Eagle3Objective
from ports.hass.train import clip_by_value
from ports.training.attention import once, shared_half
from ports.training.attention.documents import documents_of
from ports.training.attention.trained_rows import TrainedRows, on_trained_rows
from ports.training.checkpoint.keeper import sharding
from ports.training.data.features import FeatureReader
from ports.training.loss.normalisation import GlobalNormalisation, build_normalisation


def check_places(evidence: Evidence, subject: Subject) -> Iterator[Row]:
    """Rows of the corners check."""
    yield from _padding(subject)
    yield from _unnumbered(subject)
    yield from _asked_once(subject)
    yield from _projections(subject)
    yield from _trained_rows(subject)
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
        found = build_normalisation(kind.upper().lower(), SimpleNamespace(num_processes=count, device="cpu"))
        yield compare_value(subject, "processes", f"{kind} of {count}", together, type(found) is GlobalNormalisation)
    module = torch.nn.Linear(3, 1, bias=False)
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


def _asked_once(subject: Subject) -> Iterator[Row]:
    """An answer about a mask is remembered with the mask, until somebody writes to it."""
    asked: list[int] = []

    @once.once_per_tensor
    def total(mask: Tensor) -> int:
        asked.append(int(mask.sum()))
        return asked[-1]

    first, other = torch.ones(3), torch.zeros(3)
    answers = [total(first), total(other), total(first)]
    first[0] = 0
    answers += [total(first), total(first)]
    yield compare_value(subject, "once", "answers", [3, 0, 3, 2, 2], answers)
    yield compare_value(subject, "once", "questions", [3, 0, 2], asked)
    with torch.inference_mode():
        fixed = torch.ones(2)
        yield compare_value(subject, "once", "in inference", [2, 2, 4], [total(fixed), total(fixed), len(asked)])
    yield compare_value(subject, "once", "name", "total", getattr(total, "__name__", ""))


def _trained_rows(subject: Subject) -> Iterator[Row]:
    """Rows in no loss run forward alone; without any such row, or without gradient, all run in one piece."""
    states = torch.arange(8.0).reshape(2, 2, 2)
    for name, mask, expected in (
        ("some", [[1, 0], [0, 1]], [(2, False), (2, True)]),
        ("all but one", [[1, 1], [0, 1]], [(1, False), (3, True)]),
        ("all", [[1, 1], [2, 1]], [(4, True)]),
        ("none", [[0, 0], [0, 0]], [(4, False), (0, True)]),
    ):
        seen: list[tuple[int, bool]] = []
        leaf = states.clone().requires_grad_(True)
        out = TrainedRows(torch.tensor(mask)).apply(partial(_doubled, seen), leaf)
        yield compare_value(subject, "trained rows", f"{name}: seen", expected, seen)
        yield compare_value(subject, "trained rows", f"{name}: out", (states * 2).tolist(), out.tolist())
        out.sum().backward()
        grads = None if leaf.grad is None else leaf.grad.sum(-1).tolist()
        yield compare_value(
            subject, "trained rows", f"{name}: gradient", [[4.0 * bool(row) for row in each] for each in mask], grads
        )
    other = nn.Linear(2, 2)
    kept = on_trained_rows(other, TrainedRows(torch.tensor([[1, 0]]))) is other
    yield compare_value(subject, "trained rows", "a layer of another kind", True, kept)
    seen = []
    with torch.no_grad():
        TrainedRows(torch.tensor([[1, 0]])).apply(partial(_doubled, seen), states[:1])
    yield compare_value(subject, "trained rows", "no gradient: seen", [(2, False)], seen)


def _doubled(seen: list[tuple[int, bool]], rows: Tensor) -> Tensor:
    seen.append((rows.shape[:-1].numel(), torch.is_grad_enabled()))
    return rows * 2


class _Wrapped(nn.Linear):
    """As libraries derive theirs, to add to the product or to hold other weights."""


def _projections(subject: Subject) -> Iterator[Row]:
    """Plain float32 products alone are taken in halves; what anything else hangs on is called as it is."""
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda module, inputs, out: None)
    before = nn.Sequential(nn.Linear(2, 2))
    before[0].register_forward_pre_hook(lambda module, inputs: None)
    plain = nn.Linear(2, 2)
    cases: dict[str, tuple[bool, nn.Module, list[nn.Module]]] = {
        "plain": (True, plain, [plain, nn.Linear(2, 2)]),
        "of doubles": (True, plain, [nn.Linear(2, 2).double()]),
        "of halves": (False, plain, [plain, nn.Linear(2, 2).bfloat16()]),
        "derived": (False, plain, [plain, _Wrapped(2, 2)]),
        "watched": (False, hooked, [plain]),
        "watched before": (False, before, [plain]),
    }
    for name, (split, module, projections) in cases.items():
        yield compare_value(subject, "in halves", name, split, shared_half.can_split(module, projections))
    with torch.autocast("cpu", torch.bfloat16):
        yield compare_value(subject, "in halves", "under autocast", False, shared_half.can_split(plain, [plain]))
