"""Parameters after Adam has stepped: which entries the gradients determine.

Adam's first step is lr * g / (|g| + eps), in effect lr * sign(g). An entry whose gradient is smaller than the tolerance
that gradients are held to may have either sign in two correct implementations, and then differs by up to 2 * lr. Larger
models have such entries; where they break a bound, the others alone are judged and the row says how many were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from parity.compare import Subject, compare, compare_groups
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row

MOST_LEFT_OUT = 0.02
"""A row that needs more of its entries left out than this fails all the same."""


def compare_parameters(
    evidence: Evidence, subject: Subject, quantity: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[Row]:
    """Every parameter by name; what only undetermined entries break passes."""
    rows = compare_groups(subject, quantity, expected, found, evidence.tolerance(quantity))
    return [
        row if row.passed or row.measured is None else _judge_determined(evidence, row, expected, found) for row in rows
    ]


def _judge_determined(evidence: Evidence, row: Row, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Row:
    determined = _determined(evidence, row.tensor)
    if determined is None or determined.shape != expected[row.tensor].shape:
        return row
    left_out = int((~determined).sum())
    if left_out == 0 or left_out > MOST_LEFT_OUT * determined.numel():
        return row
    subject, tolerance = Subject(row.check, row.case, row.run), evidence.tolerance(row.quantity)
    again = compare(
        subject, row.quantity, row.tensor, expected[row.tensor], found[row.tensor], tolerance, where=determined
    )
    note = f"{left_out} of {determined.numel()} entries left out: their gradient is below its own tolerance"
    return replace(again, detail=f"{note}. {again.detail}")


def _determined(evidence: Evidence, name: str) -> Tensor | None:
    """Where the recorded gradient of the first step is above the tolerance for gradients."""
    grads = evidence.expected.group(f"mb{evidence.micro_batches()[-1]}.grad.")
    if name not in grads:
        return None
    size = grads[name].abs()
    return size > evidence.tolerance("grad").bound * size.max()
