"""Compare an original with what it differs from, and show that named causes are all of the difference.

A side that can be changed gives its tensors for any set of causes: none of them is the side itself, all of them should
be the original. A cause is real if leaving it out while all others are in moves something by more than the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from parity.compare import Subject, compare_named
from parity.tolerances import tables
from parity.verdict import Row

Tensors = Mapping[str, Tensor]
Side = Callable[[frozenset[str]], Tensors]
"""Tensors by name, in shared coordinates, with the given causes put in."""

GROUPS = ("layers.0.self_attn", "layers.0.mlp", "norm")

EXPLAINED = tables()["explained"]


@dataclass(frozen=True)
class Cause:
    """One thing the original does another way."""

    id: str
    what: str


@dataclass(frozen=True)
class Finding:
    """One quantity: how far the original is from the side as it is, and what is left with every cause in.

    ``because`` holds the causes that matter here, each with what is left without it. A missing number means that one of
    the two has no such tensor.
    """

    quantity: str
    difference: float | None
    left: Row
    because: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Study:
    """An original against one other side, on one case."""

    original: str
    against: str
    case: str
    causes: tuple[Cause, ...]
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when every quantity is explained and every cause is real."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def effect(self, cause: str, quantity: str) -> float | None:
        """The largest difference that leaving out a cause makes in quantities of a kind (``hidden``, ``loss``...)."""
        found = [
            math.inf if size is None else size
            for finding in self.findings
            if kind_of(finding.quantity) == quantity
            for name, size in finding.because
            if name == cause
        ]
        return max(found, default=None)


def study(
    subject: Subject,
    theirs: Tensors,
    side: Side,
    causes: Sequence[Cause],
    facts: Mapping[str, Any] | None = None,
    start: Tensors | None = None,
) -> Study:
    """Hold ``theirs`` against ``side`` without causes, with all of them, and with all but one.

    ``start`` is what the side must be without causes, where that was recorded.
    """
    everything = frozenset(cause.id for cause in causes)
    plain, full = side(frozenset()), side(everything)
    without = {cause.id: side(everything - {cause.id}) for cause in causes}
    findings = []
    for quantity in quantities({*theirs, *full}):
        left_out = {name: worst(subject, quantity, theirs, tensors) for name, tensors in without.items()}
        because = tuple((name, row.measured) for name, row in left_out.items() if not row.passed)
        difference = worst(subject, quantity, theirs, plain).measured
        findings.append(Finding(quantity, difference, worst(subject, quantity, theirs, full), because))
    rows = [finding.left for finding in findings] + [_real(subject, cause, findings) for cause in causes]
    rows += _start(subject, plain, start or {})
    original, against = subject.run.split(" against ")
    return Study(original, against, subject.case, tuple(causes), tuple(findings), tuple(rows), facts or {})


def _start(subject: Subject, plain: Tensors, start: Tensors) -> list[Row]:
    """Is the side without causes what was recorded?"""
    own = replace(subject, check="start")
    return [
        compare_named(
            own,
            kind_of(quantity_of(name)),
            name,
            value,
            plain.get(name),
            EXPLAINED[kind_of(quantity_of(name))],
        )
        for name, value in start.items()
    ]


def _real(subject: Subject, cause: Cause, findings: Sequence[Finding]) -> Row:
    """Does leaving the cause out change anything?"""
    count = sum(name == cause.id for finding in findings for name, _ in finding.because)
    detail = "" if count else "leaving this cause out changes nothing: it explains nothing here"
    return subject.row("cause", cause.id, float(count), 1.0, count > 0, detail)


def quantities(names: set[str]) -> list[str]:
    """What is reported, in order: every step's tensors, the loss, gradients by group."""
    return sorted({quantity_of(name) for name in names}, key=_order)


def _order(quantity: str) -> tuple[int, str]:
    kinds = ["features", "hidden", "logits", "loss", "gradients"]
    return kinds.index(kind_of(quantity)), "~" if quantity == "loss, total" else quantity


def kind_of(quantity: str) -> str:
    """``hidden`` of ``hidden, step 0``."""
    return quantity.partition(",")[0]


def quantity_of(name: str) -> str:
    """The quantity that a tensor belongs to."""
    if name.startswith("step"):
        step, _, what = name.partition(".")
        return f"{what}, step {step[4:]}"
    if name.startswith("grad."):
        return f"gradients, {_group(name[5:])}"
    return "loss, total" if name == "loss" else name


def _group(parameter: str) -> str:
    if "norm" in parameter:
        return "norms"
    return next((group for group in GROUPS if parameter.startswith(group)), parameter.removesuffix(".weight"))


def worst(subject: Subject, quantity: str, theirs: Tensors, found: Tensors) -> Row:
    """The row of the tensor of a quantity that agrees least; one that a side lacks is worst of all."""
    names = sorted(name for name in {*theirs, *found} if quantity_of(name) == quantity)
    rows = [
        compare_named(
            subject,
            kind_of(quantity),
            name,
            theirs.get(name),
            found.get(name),
            EXPLAINED[kind_of(quantity)],
        )
        for name in names
    ]
    return max(rows, key=lambda row: math.inf if row.measured is None or math.isnan(row.measured) else row.measured)
