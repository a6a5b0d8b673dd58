"""Two traces into a report: rows check by check, what follows from what, and where it first goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from parity.blocking import explained
from parity.calls import calls_of
from parity.kit.judge import Judge
from parity.kit.report import KitReport
from parity.kit.tolerances import Tolerances, table_for
from parity.locate import LOSS, Finding, first_backward, first_forward, within
from parity.names import WHOLE, NameMap, align, as_map
from parity.trace import Trace
from parity.verdict import Curve, Report, Row, Status

TRACED = ("weights", "batches", "forward", "loss", "gradients", "optimizer_step", "curve")
"""Checks of two traces, in the order in which a fault travels."""

FOLLOWS = {
    "batches": ("weights",),
    "forward": ("weights", "batches"),
    "loss": ("forward",),
    "gradients": ("loss",),
    "optimizer_step": ("gradients",),
    "curve": ("optimizer_step",),
    "resume": ("round_trip",),
}
DIRECTIONS = {"weights": "setup", "batches": "setup", "optimizer_step": "update", "curve": "training"}


def compare_traces(
    original: Trace,
    port: Trace,
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = TRACED,
) -> KitReport:
    """Hold a trace against another one, tensor by tensor.

    Args:
        original, port: of :func:`trace_side`, :func:`read_trace`, or of a shipped port.
        names: the original's names to the port's.
        tolerances: rows that take the place of the default table's.
        checks: which of ``TRACED``.

    Raises:
        InputError: traces of another dtype than there is a table for.
    """
    names = as_map(names)
    if original.run == port.run:
        original, port = replace(original, run="original"), replace(port, run="port")
    left_out = (*original.left_out, *port.left_out)
    original, port = original.without(left_out), port.without(left_out)
    table = table_for(port.dtype, tolerances)
    expected, port = align(original, port, names)
    judge = Judge(expected, port, names, table)
    chosen = [check for check in TRACED if check in set(checks) and _has_subject(check, expected)]
    rows = explained([row for check in chosen for row in judge.rows(check)], FOLLOWS)
    first = first_place(rows, expected, port, table)
    report = Report(rows=hinted(rows, first), baseline=original.run, environment=environments(original, port))
    report.notes = [*differing(original, port), *_left_out(port.left_out), *_unmatched(expected, port)]
    for trace in (original, port):
        report.curves += [Curve(port.case, trace.run, "loss", tuple(point.loss for point in trace.curve))]
    return KitReport(report, first)


def _has_subject(check: str, trace: Trace) -> bool:
    """Batches are part of a shipped port's trace alone; states may have been left out."""
    if check == "batches":
        return any(".batch." in name for name in trace.tensors)
    return {"weights": "init", "optimizer_step": "after"}.get(check) not in trace.left_out


def _left_out(groups: tuple[str, ...]) -> list[str]:
    return [f"left out of a trace, not compared: {', '.join(groups)}"] if groups else []


def environments(original: Trace, port: Trace) -> dict[str, object]:
    """Both, where they differ, under the sides' names."""
    if original.environment == port.environment:
        return dict(port.environment)
    return {original.run: dict(original.environment), port.run: dict(port.environment)}


def differing(original: Trace, port: Trace) -> list[str]:
    """One line for every version or mode that the two environments do not share."""
    sides = original.environment, port.environment
    names = dict.fromkeys([*sides[0], *sides[1]])
    pairs = ((name, sides[0].get(name), sides[1].get(name)) for name in names)
    return [
        f"{name}: {mine} on the original's side, {theirs} on the port's"
        for name, mine, theirs in pairs
        if mine != theirs
    ]


def _unmatched(expected: Trace, port: Trace) -> list[str]:
    """Modules whose outputs were not compared, since one side alone calls them."""
    sides = [{call.rpartition("#")[0] for call in trace.calls} for trace in (expected, port)]
    notes = (("the original", sides[0] - sides[1]), ("the port", sides[1] - sides[0]))
    return [f"called by {side} alone, not compared: {', '.join(sorted(only))}" for side, only in notes if only]


def hinted(rows: list[Row], first: Finding | None) -> list[Row]:
    """The first failed row says where it first goes wrong, so that pages and files have it too."""
    at = next((i for i, row in enumerate(rows) if row.status is Status.FAILED), None)
    if first is None or at is None:
        return rows
    return [*rows[:at], replace(rows[at], hint=str(first)), *rows[at + 1 :]]


def first_place(rows: list[Row], expected: Trace, found: Trace, table: Tolerances) -> Finding | None:
    """Where the first failed row's check goes wrong; None when everything passed."""
    row = next((row for row in rows if row.status is Status.FAILED), None)
    if row is None:
        return None
    sides = calls_of(expected), calls_of(found)
    finding = None
    if row.check == "forward":
        finding = first_forward(*sides, within(table["out"].bound))
    elif row.check == "gradients" and sides[0]:
        grads = expected.group("mb0.grad."), found.group("mb0.grad.")
        finding = first_backward(*sides, grads, within(table["grad"].bound))
    return finding or _of_row(row)


def _of_row(row: Row) -> Finding:
    """The place that a row names by itself."""
    if row.check == "loss":
        return Finding("loss", "forward", LOSS, 0, row.detail)
    parameter = row.tensor.partition(".")[2] if row.check in ("weights", "optimizer_step") else ""
    module = parameter.rpartition(".")[0] if parameter else WHOLE
    detail = ": ".join(filter(None, (row.tensor, row.detail)))
    return Finding(row.check, DIRECTIONS.get(row.check, row.check), module or WHOLE, 0, detail)
