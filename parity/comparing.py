"""Two sides, two traces or two folders at hand, held against each other: a pair of them, run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from parity.case import STEPS, Batch, Case
from parity.checks import NAMES
from parity.compare import RowKey
from parity.errors import InputError
from parity.files import read_object
from parity.names import NameMap
from parity.outside import TraceSide
from parity.pair import Options, Pair
from parity.run import KitReport, join_reports, run_pair
from parity.side import AnySide
from parity.tolerances import Tolerances
from parity.trace import META, Trace, read_trace

TRACED = tuple(name for name in NAMES if name not in ("round_trip", "resume"))
"""Checks that two traces are enough for."""


def compare_sides(
    original: AnySide,
    port: AnySide,
    batches: Sequence[Batch] = (),
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] | None = None,
    copy_weights: bool = True,
) -> KitReport:
    """Hold a port against its original and say where it first goes wrong: a :class:`Pair` of the two, run.

    Args:
        original, port: sides; a command's own trace stands for what it computed.
        batches: given to both sides; the first one is traced, all of them make the curve.
        names: the original's names to the port's; :func:`suggest_names` proposes one.
        seed: of both builds, and of what the first step draws.
        steps: optimizer steps of the curve and of the resumed run.
        tolerances: rows in the place of the default table's.
        checks: of ``CHECKS`` and ``throughput``.
        copy_weights: give the port the original's initial weights by the map. Otherwise both start from their own,
            which must be equal.

    Raises:
        InputError: no batch, an unknown check or tolerance, or a dtype without tolerances.
    """
    original, port = (
        side if side.name else replace(cast(Any, side), name=name)
        for side, name in ((original, "original"), (port, "port"))
    )
    pair = Pair(
        name=port.name,
        original=original,
        port=port,
        cases=(Case("", batches, seed, steps),),
        names=names,
        tolerances=tolerances or {},
        copy_weights=copy_weights,
    )
    return run_pair(pair, Options(checks=None if checks is None else tuple(checks)))


def compare_traces(
    original: Trace,
    port: Trace,
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = TRACED,
) -> KitReport:
    """Hold a trace against another one, tensor by tensor: :func:`compare_sides` without a side to run again.

    Args:
        original, port: of :func:`trace_side`, :func:`read_trace`, or of a shipped port.
        names, tolerances, checks: as there.

    Raises:
        InputError: traces without a spread, of another dtype than there is a table for.
    """
    return compare_sides(TraceSide(original), TraceSide(port), names=names, tolerances=tolerances, checks=checks)


def compare_folders(
    original: Path,
    port: Path,
    names: NameMap | None = None,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = TRACED,
) -> KitReport:
    """Every trace of one folder with that of the same name in the other.

    Raises:
        InputError: a folder without a trace, or a damaged one.
    """
    sides = traces_in(original), traces_in(port)
    if ("" in sides[0]) != ("" in sides[1]):
        raise InputError(port if "" in sides[0] else original, META, "missing", "one trace, as in the other folder")
    results = [KitReport(baseline=original.name)]
    for name in sorted({*sides[0], *sides[1]}):
        if name not in sides[0] or name not in sides[1]:
            missing = f"missing in {port if name in sides[0] else original}"
            results[0].rows.append(RowKey.of_side(name, "trace", "trace").failed("trace", "", missing))
            continue
        pair = read_trace(sides[0][name]), read_trace(sides[1][name])
        results.append(compare_traces(*pair, names=names, tolerances=tolerances, checks=checks))
    return join_reports(results)


def traces_in(folder: Path) -> dict[str, Path]:
    """A folder that is a trace, by the empty name; else its subfolders that are, by theirs; InputError: neither."""
    if (folder / META).exists():
        return {"": folder}
    found = {file.parent.name: file.parent for file in folder.glob(f"*/{META}")}
    if not found:
        raise InputError(folder, META, "missing", "a trace, or folders with one each, of parity trace or write_trace")
    return found


def read_names(file: Path) -> NameMap:
    """A name map from a JSON object; null stands for no counterpart.

    Raises:
        InputError: not an object of names.
    """
    document = read_object(file)
    for name, target in document.items():
        if target is not None and not isinstance(target, str):
            raise InputError(file, name, repr(target)[:80], "a name or null")
    return NameMap(document)
