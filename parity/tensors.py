"""Tensors of micro-batches that are no state and no call: the check that each belongs to, and its row."""

from __future__ import annotations

import re

import torch

from parity.compare import compare, compare_named
from parity.trace import Trace
from parity.trace_pair import TracePair
from parity.verdict import Against, Row

PLACES = (
    (re.compile(r"mb\d+\.batch\."), "batches", "batch"),
    (re.compile(r"mb\d+\.draw\."), "draws", "draw"),
    (re.compile(r"mb\d+\.(grad|tap_grad)\."), "gradients", "grad"),
    (re.compile(r"mb\d+\.grad_norm$"), "gradients", "grad_norm"),
    (re.compile(r"mb\d+\.path\."), "cross_step_grad", "cross_step_grad"),
    (re.compile(r"mb\d+\.target_p$"), "targets", "target_p"),
    (re.compile(r"mb\d+(\.step\d+)?\.loss$"), "loss", "loss"),
    (re.compile(r"mb\d+\.call\."), "", ""),
    (re.compile(r"mb\d+\."), "forward", ""),
)
"""Tensors of a trace that are no state and no call: check and quantity by name, the first that fits.

Where the quantity is empty it is the last word of the name, an output's where the table has no such row.
"""

BY_REFERENCE = ("gradients", "cross_step_grad")
"""Checks of what an original's trace may lack altogether, and the formulas run again have."""


def place_of_tensor(name: str) -> tuple[str, str]:
    """Check and quantity of a tensor of a micro-batch."""
    return next(((check, quantity) for form, check, quantity in PLACES if form.match(name)), ("", ""))


def original_of(evidence: TracePair, check: str) -> tuple[Trace, Against]:
    """The original's trace, or the reference's where that alone has what a check is about."""
    here = any(
        place_of_tensor(name)[0] == check and not name.endswith("grad_norm") for name in evidence.expected.tensors
    )
    if here or evidence.reference is None or check not in BY_REFERENCE:
        return evidence.expected, Against.PROTOTYPE
    return evidence.reference(), Against.REFERENCE


def tensor_names(evidence: TracePair, check: str) -> list[str]:
    """The original's, and those of the port that it must have; gradients of micro-batches it kept none of are not."""
    sides = original_of(evidence, check)[0], evidence.found
    expected, found = ([n for n in trace.tensors if place_of_tensor(n)[0] == check] for trace in sides)
    kept = {name.partition(".grad.")[0] for name in expected if ".grad." in name}
    further = [n for n in found if evidence.names.expected_of(n.partition(".grad.")[2] or n)]
    return sorted({*expected, *(n for n in further if check != "gradients" or not kept or n.partition(".")[0] in kept)})


def tensor_row(evidence: TracePair, check: str, name: str) -> Row:
    """One tensor under its bound. A loss that is no number on both sides is a fault all the same."""
    source, against = original_of(evidence, check)
    if name in evidence.expected.tensors:
        source, against = evidence.expected, Against.PROTOTYPE
    quantity = place_of_tensor(name)[1] or "out"
    expected, found = source.tensors.get(name), evidence.found.tensors.get(name)
    dtype = torch.float32 if expected is None else expected.dtype
    subject, bound = evidence.subject(check, against), evidence.allowed(quantity, name, dtype)
    if quantity == "loss" and expected is not None and found is not None:
        return compare(subject, quantity, name, expected, found, bound)
    return compare_named(subject, quantity, name, expected, found, bound)
