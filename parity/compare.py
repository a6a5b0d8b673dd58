"""The one comparison: two tensors in shared coordinates, under one tolerance, into one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from parity.tolerances import EXACT, Kind, Tolerance
from parity.trace import Trace
from parity.verdict import Against, Row, Status

NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Subject:
    """Whose numbers are compared, and with what: check, case and run name the rows."""

    check: str
    case: str
    run: str
    against: Against = Against.PROTOTYPE

    def row(
        self, quantity: str, tensor: str, measured: float | None, allowed: float | None, passed: bool, detail: str = ""
    ) -> Row:
        status = Status.PASSED if passed else Status.FAILED
        return Row(
            self.check, self.case, self.run, quantity, tensor, measured, allowed, status, detail, against=self.against
        )

    def inapplicable(self, reason: str) -> Row:
        """The one row of a check that has no subject here."""
        blank = self.row("comparisons", "", None, None, True, reason)
        return replace(blank, status=Status.NOT_APPLICABLE)


@dataclass(frozen=True)
class View:
    """Coordinates that two sides share where their own differ, padded and packed for example.

    Args:
        names: a glob of tensor names, ``mb*.step*.logits``; the last view that fits a name counts.
        original, port: that side's tensor, and its trace, to the shared coordinates; default: as it is.
        rows: a trace and a name to a bool mask [rows that count] of the tensor's first axes; None: all count. Where
            both sides have the same one, it marks entries in place; else each side's rows are taken out by its own.
    """

    names: str
    original: Callable[[Tensor, Trace], Tensor] = lambda tensor, trace: tensor
    port: Callable[[Tensor, Trace], Tensor] = lambda tensor, trace: tensor
    rows: Callable[[Trace, str], Tensor | None] = lambda trace, name: None


def compare_traced(
    subject: Subject,
    quantity: str,
    name: str,
    traces: tuple[Trace, Trace],
    tolerance: Tolerance,
    views: Iterable[View] = (),
) -> Row:
    """One tensor of two traces, in the coordinates of the view that fits its name."""
    expected, found = (trace.tensors.get(name) for trace in traces)
    view = next((one for one in reversed(tuple(views)) if fnmatchcase(name, one.names)), None)
    if view is None or expected is None or found is None:
        return compare_named(subject, quantity, name, expected, found, tolerance)
    expected, found = view.original(expected, traces[0]), view.port(found, traces[1])
    masks = [view.rows(trace, name) for trace in traces]
    if masks[0] is None and masks[1] is None:
        return compare_named(subject, quantity, name, expected, found, tolerance)
    if masks[0] is not None and masks[1] is not None and torch.equal(masks[0], masks[1]):
        return compare(subject, quantity, name, expected, found, tolerance, where=masks[0])
    mine, theirs = (value if mask is None else value[mask] for value, mask in zip((expected, found), masks))
    return compare(subject, quantity, name, mine, theirs, tolerance)


def compare(
    subject: Subject,
    quantity: str,
    name: str,
    expected: Tensor,
    found: Tensor,
    tolerance: Tolerance,
    where: Tensor | None = None,
) -> Row:
    """Compare two tensors; fails on another shape, on NaN or Inf on either side, and on zero entries.

    Args:
        subject: names the row.
        quantity: key of the tolerance table.
        name: the tensor's name in the trace.
        expected, found: the prototype's and the other side's.
        tolerance: kind and bound.
        where: bool, a prefix of the tensors' shape; only marked entries count (real positions).
    """
    if expected.shape != found.shape:
        detail = f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        return subject.row(quantity, name, None, tolerance.bound, False, detail)
    if where is not None and where.shape != expected.shape[: where.dim()]:
        detail = f"shape {tuple(expected.shape)} does not begin with the mask's {tuple(where.shape)}"
        return subject.row(quantity, name, None, tolerance.bound, False, detail)
    difference, worst = _measure(expected, found, tolerance.kind, where)
    if difference.numel() == 0:
        return subject.row(quantity, name, None, tolerance.bound, False, "nothing compared")
    measured = float(difference.sum() if tolerance.kind in (Kind.EQUAL, Kind.OF_SUM) else difference.max())
    broken = _not_finite(expected, found, where)
    passed = not broken and measured <= tolerance.bound
    return subject.row(quantity, name, measured, tolerance.bound, passed, broken or worst)


def _measure(expected: Tensor, found: Tensor, kind: Kind, where: Tensor | None) -> tuple[Tensor, str]:
    wide_expected, wide_found = _wide(expected), _wide(found)
    gap = (wide_found - wide_expected).abs()
    if kind is Kind.EQUAL:
        difference = _differs(expected.detach().cpu(), found.detach().cpu()).double()
    elif kind is Kind.OF_MAX:
        difference = gap / _largest(_selected(wide_expected, where))
    elif kind is Kind.OF_SUM:
        difference = gap / _largest(_selected(wide_expected, where).abs().sum())
    elif kind is Kind.RELATIVE:
        difference = torch.where(gap == 0, gap, gap / wide_expected.abs())
    else:
        difference = gap
    return _selected(difference, where), _worst(wide_expected, wide_found, difference, where)


def _wide(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _differs(expected: Tensor, found: Tensor) -> Tensor:
    """Entry by entry in their own dtype, since float64 cannot hold large integers; another dtype differs everywhere."""
    return expected != found if expected.dtype == found.dtype else torch.ones(expected.shape, dtype=torch.bool)


def _largest(values: Tensor) -> Tensor:
    """The largest absolute value, never 0."""
    size = values.abs().max() if values.numel() else torch.zeros((), dtype=values.dtype)
    return size.clamp(min=torch.finfo(torch.float64).tiny)


def _selected(values: Tensor, where: Tensor | None) -> Tensor:
    return values if where is None else values[where]


def _worst(expected: Tensor, found: Tensor, difference: Tensor, where: Tensor | None) -> str:
    """Index of the largest difference and both values."""
    if where is not None:
        mask = where.reshape(*where.shape, *[1] * (difference.dim() - where.dim()))
        difference = torch.where(mask, difference, torch.full_like(difference, -1.0))
    if difference.numel() == 0:
        return ""
    flat = int(torch.nan_to_num(difference, nan=float("inf")).flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), difference.shape)) if difference.dim() else ()
    return f"at {index}: expected {expected.flatten()[flat].item()!r}, found {found.flatten()[flat].item()!r}"


def _not_finite(expected: Tensor, found: Tensor, where: Tensor | None) -> str:
    for side, values in (("expected", expected), ("found", found)):
        values = _selected(values, where)
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            return f"{int((~torch.isfinite(values)).sum())} NaN or Inf on the {side} side"
    return ""


def compare_named(
    subject: Subject,
    quantity: str,
    name: str,
    expected: Tensor | None,
    found: Tensor | None,
    tolerance: Tolerance,
    where: Tensor | None = None,
) -> Row:
    """Compare one tensor that either side may lack; lacking it fails.

    Whole numbers must be equal whatever the tolerance, and what is infinite on both sides alike agrees.
    """
    if expected is None or found is None:
        detail = "missing" if found is None else "unexpected: the original has none"
        return subject.row(quantity, name, None, tolerance.bound, False, detail)
    if not (expected.is_floating_point() or expected.is_complex()):
        return compare(subject, quantity, name, expected, found, EXACT, where)
    if where is not None or expected.shape != found.shape or tolerance.kind is Kind.EQUAL:
        return compare(subject, quantity, name, expected, found, tolerance, where)
    endless = torch.isinf(expected) & (expected == found)
    if bool(endless.any()) and bool(endless.all()):
        return subject.row(quantity, name, 0.0, tolerance.bound, True, "infinite everywhere, on both sides alike")
    if bool(endless.any()):
        expected, found = expected[~endless], found[~endless]
    return compare(subject, quantity, name, expected, found, tolerance)


def compare_groups(
    subject: Subject, quantity: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: Tolerance
) -> list[Row]:
    """Compare tensors by name; a name on one side only fails, and so does an empty expectation."""
    rows = []
    if not expected:
        rows.append(subject.row(quantity, "", None, tolerance.bound, False, "nothing to compare with"))
    names = sorted({*expected, *found})
    rows += [compare_named(subject, quantity, name, expected.get(name), found.get(name), tolerance) for name in names]
    return rows


def compare_value(subject: Subject, quantity: str, name: str, expected: object, found: object) -> Row:
    """Two plain values that must be equal."""
    equal = expected == found
    detail = "" if equal else f"found {found!r}, expected {expected!r}"
    return subject.row(quantity, name, 0.0 if equal else 1.0, 0.0, equal, detail)


def compare_series(
    subject: Subject, quantity: str, name: str, expected: list[float], found: list[float], tolerance: Tolerance
) -> Row:
    """Two curves, step by step."""
    wide = torch.float64
    return compare(
        subject, quantity, name, torch.tensor(expected, dtype=wide), torch.tensor(found, dtype=wide), tolerance
    )


def compare_counts(
    subject: Subject, quantity: str, name: str, expected: Sequence[int], found: Sequence[int], ties: Sequence[int]
) -> Row:
    """Counts that must be equal but for those that near ties decide; measured is what lies beyond these."""
    if len(expected) != len(found) or not expected:
        detail = f"{len(found)} points, expected {len(expected)}" if expected or found else "nothing compared"
        return subject.row(quantity, name, None, 0.0, False, detail)
    gaps = [abs(mine - theirs) for mine, theirs in zip(expected, found)]
    beyond = [max(0, gap - allowed) for gap, allowed in zip(gaps, ties)]
    worst = beyond.index(max(beyond))
    detail = f"at ({worst},): expected {expected[worst]}, found {found[worst]}, {ties[worst]} near ties"
    if not any(beyond) and any(gaps):
        detail = f"{sum(gaps)} of {sum(expected)} fall the other way, {sum(ties)} are near ties"
    return subject.row(quantity, name, float(sum(beyond)), 0.0, not any(beyond), detail)


def compare_lines(
    subject: Subject, quantity: str, expected: Sequence[str], found: Sequence[str], tolerance: Tolerance
) -> Row:
    """The same printed lines; the numbers in them may be rounded either way in the last digit."""
    words = [[NUMBER.sub("#", line) for line in side] for side in (expected, found)]
    if words[0] != words[1]:
        return compare_value(subject, quantity, "lines", list(expected), list(found))
    mine, theirs = ([float(number) for line in side for number in NUMBER.findall(line)] for side in (expected, found))
    return compare_series(subject, quantity, "numbers", mine, theirs, tolerance)
