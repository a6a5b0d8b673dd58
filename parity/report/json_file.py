"""The report as a JSON file for machines, and back.

Floats are written with ``repr`` precision. JSON has no NaN and no infinity, so those are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, which both Python's ``float`` and JavaScript's ``Number`` understand.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from parity.errors import InputError
from parity.report.decode import MismatchError, decode
from parity.report.files import write_beside
from parity.verdict import Report

FORMAT_VERSION = 1
DERIVED = ("format_version", "passed", "comparisons")


def write_json(report: Report, path: str | Path) -> None:
    """Write the report to ``path``, whole or not at all."""
    write_beside(Path(path), json.dumps(_document(report), indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Report:
    """Read what ``write_json`` wrote.

    Raises:
        InputError: not such a file, or one of a newer format; names the file, the field, what was found and expected.
    """
    path = Path(path)
    document = _parse(path)
    _check_version(path, document.get("format_version"))
    content = {name: value for name, value in document.items() if name not in DERIVED}
    content["rows"] = _without_passed(content.get("rows"))
    try:
        report: Report = decode(Report, content, "report")
    except MismatchError as error:
        raise InputError(path, error.where, error.found, error.expected) from error
    return report


def _document(report: Report) -> dict[str, Any]:
    content = {**asdict(report), "rows": [row.as_json() for row in report.rows]}
    content["environment"] = plain(report.environment, ordered=True)
    head = {"format_version": FORMAT_VERSION, "passed": report.passed, "comparisons": len(report.rows)}
    return {**head, **{name: plain(value) for name, value in content.items()}}


def plain(value: Any, ordered: bool = False) -> Any:
    """The value in JSON's own types; ``ordered`` sorts the keys of mappings that come in no fixed order."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _non_finite(value)
    if isinstance(value, dict):
        pairs = [(str(key), plain(item, ordered)) for key, item in value.items()]
        return dict(sorted(pairs, key=lambda pair: pair[0]) if ordered else pairs)
    if isinstance(value, (list, tuple)):
        return [plain(item, ordered) for item in value]
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def _non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, "file", str(error), "a JSON report of a parity run") from error
    if not isinstance(document, dict):
        raise InputError(path, "file", type(document).__name__, "a JSON object, the report of a parity run")
    return document


def _check_version(path: Path, found: Any) -> None:
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= FORMAT_VERSION:
        expected = f"a version from 1 to {FORMAT_VERSION}, the newest this release reads"
        raise InputError(path, "format_version", "nothing" if found is None else repr(found), expected)


def _without_passed(rows: Any) -> Any:
    """Rows carry ``passed`` for readers of the file; it follows from ``status`` and is not read back."""
    if not isinstance(rows, list):
        return rows
    return [{k: v for k, v in row.items() if k != "passed"} if isinstance(row, dict) else row for row in rows]
