"""bfloat16: tensors and curves by their distance from float64, the port's beside the prototype's own."""

from __future__ import annotations

from parity.precision import curve_rows, tensor_rows
from parity.prototypes.checks.evidence import Evidence
from parity.verdict import Row


def check_precision(evidence: Evidence) -> list[Row]:
    """The first step's tensors, and the losses of every step."""
    allowed = {name: evidence.tolerance(name) for name in ("error_ratio", "loss_error", "distance", "drift")}
    sides = evidence.oracle(), evidence.expected, evidence.found
    subject = evidence.subject("precision")
    return [*tensor_rows(subject, *sides, evidence.real, allowed), *curve_rows(subject, *sides, allowed)]
