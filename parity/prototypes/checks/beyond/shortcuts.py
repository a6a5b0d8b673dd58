"""Where the port saves work: what is asked once, products taken in halves, rows that run without gradient.

Each may be taken in some cases alone: in others numbers would be wrong, or somebody who watches would see nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from parity.compare import Subject, compare_value
from parity.verdict import Row
from ports.training.attention import once, shared_half
from ports.training.attention.trained_rows import TrainedRows, on_trained_rows


def check_shortcuts(subject: Subject) -> Iterator[Row]:
    """Rows of the corners check."""
    yield from _asked_once(subject)
    yield from _projections(subject)
    yield from _trained_rows(subject)


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
