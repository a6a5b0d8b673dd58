"""Folders of traces: one trace, or one a subfolder, compared case by case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from parity.compare import Subject
from parity.errors import InputError
from parity.files import read_object
from parity.kit.report import KitReport
from parity.kit.tolerances import Tolerances, has_table
from parity.kit.verdict import TRACED, compare_traces
from parity.names import NameMap
from parity.tolerances import Kind, Tolerance
from parity.trace_folder import META, read_trace
from parity.verdict import Report, Skip


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
    whole, first = Report(baseline=original.name), None
    for name in sorted({*sides[0], *sides[1]}):
        if name not in sides[0] or name not in sides[1]:
            missing = f"missing in {port if name in sides[0] else original}"
            whole.rows.append(Subject("trace", name, "trace").row("trace", "", None, None, False, missing))
            continue
        pair = read_trace(sides[0][name]), read_trace(sides[1][name])
        if not (has_table(pair[1].dtype) or tolerances):
            reason = f"there are no default tolerances for {pair[1].dtype}"
            whole.skips.append(Skip("trace", name or pair[1].case, reason, "--tolerances FILE, see docs/kit.md"))
            continue
        result = compare_traces(*pair, names=names, tolerances=tolerances, checks=checks)
        first = first or result.first
        add(whole, result.report)
    return KitReport(whole, first)


def traces_in(folder: Path) -> dict[str, Path]:
    """A folder that is a trace, by the empty name; else its subfolders that are traces, by theirs.

    Raises:
        InputError: neither.
    """
    if not folder.is_dir():
        raise InputError(folder, "trace", "no such folder", "a folder that parity trace or write_trace wrote")
    if (folder / META).exists():
        return {"": folder}
    found = {file.parent.name: file.parent for file in sorted(folder.glob(f"*/{META}"))}
    if not found:
        raise InputError(folder, META, "missing", "a trace, or folders with one each")
    return found


def add(whole: Report, part: Report) -> None:
    """Put the rows, curves and remarks of one report at the end of another."""
    whole.rows += part.rows
    whole.curves += part.curves
    whole.notes += [note for note in part.notes if note not in whole.notes]
    whole.environment.update(part.environment)


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


def read_tolerances(file: Path) -> dict[str, Tolerance]:
    """Rows of a JSON object ``{"out": {"kind": "OF_MAX", "bound": 1e-3, "reason": "..."}}``.

    Raises:
        InputError: another form, an unknown kind, or no reason.
    """
    table = {}
    for quantity, row in read_object(file).items():
        fits = isinstance(row, dict) and {*row} == {"kind", "bound", "reason"}
        if not fits or row["kind"] not in Kind.__members__:
            expected = f"kind (one of {', '.join(Kind.__members__)}), bound and reason"
            raise InputError(file, quantity, json.dumps(row)[:80], expected)
        bound, reason = row["bound"], row["reason"]
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not bound >= 0:
            raise InputError(file, f"{quantity}.bound", repr(bound)[:80], "a number of at least 0")
        if not isinstance(reason, str) or not reason.strip():
            raise InputError(file, f"{quantity}.reason", repr(reason)[:80], "why the bound is what it is")
        table[quantity] = Tolerance(Kind[row["kind"]], float(bound), None, reason)
    return table
