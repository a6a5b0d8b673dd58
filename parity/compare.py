"""The one comparison: two tensors in shared coordinates, under one tolerance, into one row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from parity.allowed import SAYS_NOTHING, around, relative, relative_each
from parity.tolerances import EXACT, Kind, Tolerance
from parity.trace import Trace
from parity.verdict import Against, Row, Status


@dataclass(frozen=True)
class RowKey:
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

    @classmethod
    def of_side(cls, case: str, side: str, check: str = "run") -> RowKey:
        """Of what a side does by itself."""
        return cls(check, case, side, Against.SELF_CONSISTENCY)

    def failed(self, quantity: str, tensor: str, detail: str, allowed: float | None = None) -> Row:
        """A row without a number: there was nothing to measure."""
        return self.row(quantity, tensor, None, allowed, False, detail)

    def silent(self, quantity: str, tensor: str, measured: float | None, allowed: float | None, reason: str) -> Row:
        """A row that says nothing: what it compares cannot be told from rounding."""
        row = self.row(quantity, tensor, measured, allowed, True, reason)
        return replace(row, status=Status.SILENT)

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

    Tensors of calls are named ``mb0.call.MODULE#n.out``, ``into``, ``out_grad`` or ``into_grad``, by the port's names.
    """

    names: str
    original: Callable[[Tensor, Trace], Tensor] = lambda tensor, trace: tensor
    port: Callable[[Tensor, Trace], Tensor] = lambda tensor, trace: tensor
    rows: Callable[[Trace, str], Tensor | None] = lambda trace, name: None


def viewed(expected: Trace, found: Trace, views: Sequence[View]) -> tuple[Trace, Trace]:
    """Both traces in shared coordinates: inputs, outputs and gradients of calls as well as what has a name.

    Rows that count nowhere are zeros where both sides have the same ones, and left out where not.
    """
    sides = [(expected, dict(expected.tensors)), (found, dict(found.tensors))]
    for name in {*expected.tensors, *found.tensors}:
        for view in [view for view in views if fnmatchcase(name, view.names)][-1:]:
            rows = [view.rows(trace, name) for trace, _ in sides]
            alike = rows[0] is not None and rows[1] is not None and torch.equal(rows[0], rows[1])
            for (trace, tensors), change, own in zip(sides, (view.original, view.port), rows):
                if name in tensors:
                    tensors[name] = _counted(change(tensors[name], trace), own, alike)
    return replace(expected, tensors=sides[0][1]), replace(found, tensors=sides[1][1])


def _counted(tensor: Tensor, rows: Tensor | None, in_place: bool) -> Tensor:
    """What counts of a tensor; one that does not begin with the rows' shape stays, to be found as it is."""
    if rows is None or tensor.shape[: rows.dim()] != rows.shape:
        return tensor
    if not (in_place and bool(rows.any())):
        return tensor[rows]
    return tensor.masked_fill(~rows.reshape(*rows.shape, *[1] * (tensor.dim() - rows.dim())), 0)


def compare(
    subject: RowKey,
    quantity: str,
    name: str,
    expected: Tensor,
    found: Tensor,
    tolerance: Tolerance,
) -> Row:
    """Compare two tensors; fails on another shape, on NaN or Inf on either side, and on zero entries.

    Where rounding moves all of a quantity, the row says nothing.

    Args:
        subject: names the row.
        quantity: key of the tolerance table.
        name: the tensor's name in the trace.
        expected, found: the prototype's and the other side's.
        tolerance: kind and bound.
    """
    shape, bound = expected.shape, tolerance.bound
    if found.shape != shape:
        detail = f"shape {tuple(found.shape)}, expected {tuple(shape)}"
        return subject.failed(quantity, name, detail, bound)
    mine, theirs = (side.detach().cpu().flatten() for side in (expected, found))
    if mine.numel() == 0:
        return subject.failed(quantity, name, "nothing compared", bound)
    difference = _difference(mine, theirs, tolerance.kind)
    measured = float(difference.sum() if tolerance.kind is Kind.EQUAL else difference.max())
    measured = relative(mine, theirs) if tolerance.kind is Kind.RMS else measured
    worst = int(difference.nan_to_num(nan=torch.inf).argmax())
    index = tuple(map(int, np.unravel_index(worst, tuple(shape))))
    detail = f"at {index}: expected {mine[worst].item()!r}, found {theirs[worst].item()!r}"
    broken = _not_finite(mine, "expected") or _not_finite(theirs, "found")
    if tolerance.kind is Kind.RMS and bound >= SAYS_NOTHING and not broken:
        return subject.silent(quantity, name, measured, bound, f"{tolerance.reason}: rounding alone moves all of it")
    detail = f"{detail}; {tolerance.reason}" if tolerance.kind is Kind.RMS and tolerance.reason else detail
    row = subject.row(quantity, name, measured, bound, not broken and measured <= bound, broken or detail)
    source = "" if tolerance.kind is Kind.EQUAL else tolerance.source
    return replace(row, bound=source, bits=bits_of(mine, theirs))


def _difference(expected: Tensor, found: Tensor, kind: Kind) -> Tensor:
    """Entry by entry, float64. Equal is judged in the sides' own dtype: float64 cannot hold large integers."""
    if kind is Kind.EQUAL:
        return (expected != found if expected.dtype == found.dtype else torch.ones(expected.shape)).double()
    gap = (found.double() - expected.double()).abs()
    if kind is Kind.OF_MAX:
        return gap / expected.double().abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return relative_each(expected, found) if kind is Kind.RELATIVE else gap


def _not_finite(values: Tensor, side: str) -> str:
    count = int((~torch.isfinite(values)).sum())
    return f"{count} NaN or Inf on the {side} side" if count else ""


def compare_named(
    subject: RowKey,
    quantity: str,
    name: str,
    expected: Tensor | None,
    found: Tensor | None,
    tolerance: Tolerance,
) -> Row:
    """Compare one tensor that either side may lack; lacking it fails.

    Whole numbers must be equal whatever the tolerance, unless a rounding of the original changes them: then the row
    says nothing, and nor does one of what is infinite everywhere. What is infinite on both sides alike agrees.
    """
    if expected is None or found is None:
        detail = "missing" if found is None else "unexpected: the original has none"
        return subject.failed(quantity, name, detail, tolerance.bound)
    if not (expected.is_floating_point() or expected.is_complex()):
        row = compare(subject, quantity, name, expected, found, EXACT)
        flips = tolerance.kind is Kind.RMS and tolerance.bound >= SAYS_NOTHING and row.measured is not None
        return subject.silent(quantity, name, row.measured, 0.0, "rounding alone changes it") if flips else row
    if expected.shape != found.shape or tolerance.kind is Kind.EQUAL:
        return compare(subject, quantity, name, expected, found, tolerance)
    expected, found = expected.detach().cpu(), found.detach().cpu()
    endless = torch.isinf(expected) & (expected == found)
    if bool(endless.any()) and bool(endless.all()):
        return subject.silent(quantity, name, None, None, "infinite everywhere, on both sides alike")
    expected, found = (side.masked_fill(endless, 0) for side in (expected, found))
    return compare(subject, quantity, name, expected, found, tolerance)


def bits_of(*sides: object) -> str:
    """A digest of what is compared: tensors with dtype and shape, other values as they are written."""
    digest = hashlib.blake2b(digest_size=8)
    for side in sides:
        if isinstance(side, Tensor):
            digest.update(f"{side.dtype} {tuple(side.shape)}".encode())
            digest.update(side.contiguous().resolve_conj().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{side!r};".encode())
    return digest.hexdigest()


def compare_groups(
    subject: RowKey, quantity: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: Tolerance
) -> list[Row]:
    """Compare tensors by name; a name on one side only fails, and so does an empty expectation."""
    rows = []
    if not expected:
        rows.append(subject.failed(quantity, "", "nothing to compare with", tolerance.bound))
    names = sorted({*expected, *found})
    rows += [compare_named(subject, quantity, name, expected.get(name), found.get(name), tolerance) for name in names]
    return rows


def compare_value(subject: RowKey, quantity: str, name: str, expected: object, found: object) -> Row:
    """Two plain values that must be equal."""
    equal = expected == found
    detail = "" if equal else f"found {found!r}, expected {expected!r}"
    row = subject.row(quantity, name, 0.0 if equal else 1.0, 0.0, equal, detail)
    return replace(row, bits=bits_of(expected, found))


def compare_series(
    subject: RowKey, quantity: str, name: str, expected: Sequence[float], found: Sequence[float], tolerance: Tolerance
) -> Row:
    """Two curves, step by step, under one bound."""
    mine, theirs = (torch.tensor(side, dtype=torch.float64) for side in (expected, found))
    return compare(subject, quantity, name, mine, theirs, tolerance)


def compare_grown(
    subject: RowKey,
    quantity: str,
    name: str,
    sides: Sequence[Sequence[float]],
    bounds: Sequence[float],
    last: Tolerance,
) -> Row:
    """Two curves under a bound for every point; the worst is told, of those where the bound says something.

    ``last`` says why they are what they are. The size at a point is the root mean square of it and its neighbours, as
    that of its bound is.
    """
    count = sum(1 for _ in takewhile(lambda bound: bound < SAYS_NOTHING, bounds))
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        return compare_series(subject, quantity, name, sides[0], sides[1], replace(last, kind=Kind.RELATIVE))
    mine, theirs = (torch.tensor(side, dtype=torch.float64) for side in sides)
    broken = _not_finite(mine, "expected") or _not_finite(theirs, "found")
    if not count and not broken:
        return subject.silent(quantity, name, None, bounds[0], f"{last.reason}: rounding alone moves all of it")
    apart, allowed = relative_each(mine, theirs)[: count or None], torch.tensor(bounds[: count or None])
    sizes = around(apart)
    worst, place = (int((each / allowed).nan_to_num(nan=torch.inf).argmax()) for each in (sizes, apart))
    measured, bound = float(sizes[worst]), float(allowed[worst])
    told = "" if count == len(bounds) else f"; from ({count},) on rounding alone moves all of it"
    detail = f"at ({place},): expected {sides[0][place]!r}, found {sides[1][place]!r}; {last.reason}{told}"
    row = subject.row(quantity, name, measured, bound, not broken and measured <= bound, broken or detail)
    return replace(row, bound=last.source, bits=bits_of(mine, theirs))
