"""Modules' calls in a trace, and how two sides' outputs of one call compare."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from parity.compare import Subject, compare, compare_named
from parity.kit.watch import Call
from parity.tolerances import EXACT, Kind, Tolerance
from parity.trace import Trace
from parity.verdict import Row

CALLS = "mb0.call."
CALL = re.compile(
    r"mb0\.call\.(?P<module>.*)#(?P<number>\d{1,9})\.(?P<kind>into_grad|out_grad|into|out)(?:\.(?P<place>.*))?"
)


def keep_call(trace: Trace, call: Call) -> None:
    """Put a call's tensors into a trace."""
    for kind in ("into", "out", "into_grad", "out_grad"):
        for place, tensor in getattr(call, kind).items():
            trace.tensors[".".join(filter(None, (f"{CALLS}{call.key}.{kind}", place)))] = tensor


def calls_of(trace: Trace) -> list[Call]:
    """The calls in the order in which they ended."""
    calls = {key: Call(key.rpartition("#")[0], int(key.rpartition("#")[2])) for key in trace.calls}
    for name, tensor in trace.tensors.items():
        match = CALL.fullmatch(name)
        if match and (key := f"{match['module']}#{match['number']}") in calls:
            getattr(calls[key], match["kind"])[match["place"] or ""] = tensor
    return list(calls.values())


def compare_calls(subject: Subject, expected: Call, found: Call | None, tolerance: Tolerance) -> list[Row]:
    """One row for every output."""
    if found is None:
        return [subject.row("out", expected.key, None, None, False, "missing: the port makes fewer calls")]
    return [
        compare_outputs(subject, "out", ".".join(filter(None, (expected.key, place))), mine, theirs, tolerance)
        for place, mine, theirs in paired(expected.out, found.out)
    ]


def paired(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[tuple[str, Tensor | None, Tensor | None]]:
    """Outputs by their place; where one side gives a lone tensor, it is held against the other's first."""
    if expected and found and ("" in expected) != ("" in found):
        return [("", next(iter(expected.values())), next(iter(found.values())))]
    places = [*expected, *(place for place in found if place not in expected)]
    return [(place, expected.get(place), found.get(place)) for place in places]


def compare_outputs(
    subject: Subject, quantity: str, name: str, expected: Tensor | None, found: Tensor | None, tolerance: Tolerance
) -> Row:
    """Like ``compare_named``; whole numbers must be equal, and what is infinite on both sides alike agrees."""
    if expected is None or found is None or expected.shape != found.shape:
        return compare_named(subject, quantity, name, expected, found, tolerance)
    if not (expected.is_floating_point() or expected.is_complex()):
        return compare(subject, quantity, name, expected, found, EXACT)
    endless = torch.isinf(expected) & (expected == found)
    if not bool(endless.any()) or tolerance.kind is Kind.EQUAL:
        return compare(subject, quantity, name, expected, found, tolerance)
    if bool(endless.all()):
        return subject.row(quantity, name, 0.0, tolerance.bound, True, "infinite everywhere, on both sides alike")
    return compare(subject, quantity, name, expected[~endless], found[~endless], tolerance)
