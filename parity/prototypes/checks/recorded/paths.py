"""Which earlier TTT steps a step's loss reaches through the backward pass: paths cut by a detach are found here."""

from __future__ import annotations

from torch import Tensor

from parity.compare import compare_groups
from parity.prototypes.checks.evidence import Evidence
from parity.trace import Trace
from parity.verdict import Row


def check_paths(evidence: Evidence) -> list[Row]:
    """|d loss_s / d hidden_i| for every pair of steps i <= s, against the float64 reference's.

    A path that is cut on one side shows as a norm of zero there, or as a contribution that is missing from the norm.
    """
    expected, found = _paths(evidence.oracle()), _paths(evidence.found)
    return compare_groups(evidence.subject("paths"), "path", expected, found, evidence.tolerance("path"))


def _paths(trace: Trace) -> dict[str, Tensor]:
    norms = {tuple(name.split(".")): value.double() for name, value in trace.group("mb0.path.").items()}
    return {f"loss{s} -> hidden{i}": value for (s, i), value in norms.items()}
