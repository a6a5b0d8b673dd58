"""Which earlier TTT steps a step's loss reaches through the backward pass: paths cut by a detach are found here."""

from __future__ import annotations

from parity.checks.evidence import Evidence
from parity.compare import compare_groups
from parity.result import Row


def check_paths(evidence: Evidence) -> list[Row]:
    """|d loss_s / d hidden_i| for every pair of steps i <= s, against the float64 reference's.

    A path that is cut on one side shows as a norm of zero there, or as a contribution that is missing from the norm.
    """
    expected, found = (trace.group("mb0.path.") for trace in (evidence.oracle(), evidence.found))
    floats = ({f"loss{n[0]} -> hidden{n[2:]}": v.double() for n, v in side.items()} for side in (expected, found))
    return compare_groups(evidence.subject("paths"), "path", *floats, evidence.tolerance("path"))
