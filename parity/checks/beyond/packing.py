"""The samples of a batch packed into one row against the same samples padded, as the prototype lays them out."""

from __future__ import annotations

import re

from parity.checks.evidence import Evidence
from parity.compare import compare_groups
from parity.result import Row
from parity.runs.port import SHORTEST, trace_port

COMPARED = {"loss": re.compile(r"mb\d+\.step\d+\.loss"), "grad": re.compile(r"mb\d+\.grad\.")}
"""Names in a trace, by quantity."""


def check_packing(evidence: Evidence) -> list[Row]:
    """Losses of every TTT step and gradients of the first optimizer step: the port with ``--packing``, and without."""
    packed = trace_port(evidence.case, packing=True, max_steps=SHORTEST).tensors
    rows = []
    for quantity, name in COMPARED.items():
        padded, found = (
            {key: value for key, value in tensors.items() if name.match(key)}
            for tensors in (evidence.found.tensors, packed)
        )
        rows += compare_groups(evidence.subject("packing"), quantity, padded, found, evidence.tolerance(quantity))
    return rows
