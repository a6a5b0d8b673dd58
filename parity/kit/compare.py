"""The one call: an original and a port, from the first forward to throughput."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from parity.blocking import explained
from parity.errors import InputError
from parity.kit.command import run_command
from parity.kit.report import KitReport
from parity.kit.saving import resume_rows, round_trip_rows
from parity.kit.side import AnySide, Batch, Command, Side
from parity.kit.speed import judge_timings, measure
from parity.kit.terms import Terms
from parity.kit.tolerances import Tolerances, table_for
from parity.kit.tracing import STEPS, trace_side
from parity.kit.verdict import FOLLOWS, TRACED, compare_traces, first_place
from parity.names import NameMap, as_map
from parity.trace import Trace
from parity.verdict import Report, Skip

CHECKS = (*TRACED, "round_trip", "resume")
"""What is compared by default; ``throughput`` is asked for by name."""

LIVE = ("round_trip", "resume", "throughput")


def compare_sides(
    original: AnySide,
    port: AnySide,
    batches: Sequence[Batch] = (),
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = CHECKS,
    copy_weights: bool = True,
) -> KitReport:
    """Hold a port against its original and say where it first goes wrong.

    Args:
        original, port: sides; a command's own trace stands for what it computed.
        batches: given to both sides; the first one is traced, all of them make the curve.
        names: the original's names to the port's; :func:`suggest_names` proposes one.
        seed: of both builds, and of what the first step draws.
        steps: optimizer steps of the curve and of the resumed run.
        tolerances: rows in the place of ``parity.kit.tolerances``' own.
        checks: of ``CHECKS`` and ``throughput``.
        copy_weights: give the port the original's initial weights by the map. Otherwise both start from their own,
            which must be equal.

    Raises:
        InputError: no batch, an unknown check or tolerance, or a dtype without tolerances.
    """
    names, chosen = as_map(names), _known(checks)
    original, port = _named(original, "original"), _named(port, "port")
    expected = _trace(original, batches, seed, steps)
    given = names.parameters(expected.group("init.")) if copy_weights and isinstance(port, Side) else None
    traces = expected, _trace(port, batches, seed, steps, given)
    result = compare_traces(*traces, names=names, tolerances=tolerances, checks=chosen)
    report = result.report
    terms = Terms(batches, seed, steps, table_for(traces[1].dtype, tolerances), traces[1].case, given or {})
    for check in (check for check in LIVE if check in chosen):
        _live(report, check, original, port, terms)
    report.rows = explained(report.rows, FOLLOWS)
    return replace(result, first=result.first or first_place(report.rows, *traces, terms.table))


def _live(report: Report, check: str, original: AnySide, port: AnySide, terms: Terms) -> None:
    """A check that runs a side again; a command's is skipped and says so."""
    if not isinstance(port, Side) or (check == "throughput" and not isinstance(original, Side)):
        reason = "a command leaves a trace and nothing to run again"
        report.skips.append(Skip(check, terms.case, reason, "hand in a Side with build and loss"))
    elif check == "round_trip":
        report.rows += round_trip_rows(port, terms)
    elif check == "resume":
        report.rows += resume_rows(port, terms)
    elif isinstance(original, Side):
        rows, speed = judge_timings(measure(original, port, terms), terms, (original.name, port.name))
        report.rows += rows
        report.speeds.append(speed)


def _trace(
    side: AnySide, batches: Sequence[Batch], seed: int, steps: int, weights: dict[str, Tensor] | None = None
) -> Trace:
    if isinstance(side, Command):
        return run_command(side)
    return trace_side(side, batches, seed=seed, steps=steps, weights=weights)


def _named(side: AnySide, name: str) -> AnySide:
    return side if side.name else replace(side, name=name)


def _known(checks: Iterable[str]) -> tuple[str, ...]:
    known, chosen = (*CHECKS, "throughput"), tuple(checks)
    for check in chosen:
        if check not in known:
            raise InputError("comparison", "checks", check, f"of {', '.join(known)}")
    return chosen
