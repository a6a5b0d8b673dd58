"""The report as a JSON file for machines.

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

from parity.report.summary import write_whole
from parity.verdict import Report

FORMAT_VERSION = 2


def write_json(report: Report, path: str | Path) -> None:
    """Write the report to ``path``, whole or not at all: the verdict, the counts behind it, every row, every curve.

    Raises:
        InputError: ``path`` cannot be written.
    """
    head = {
        "format_version": FORMAT_VERSION,
        "passed": report.passed,
        "verdict": report.verdict_line(),
        "counts": report.counts().as_json(),
    }
    content = {**asdict(report), "rows": [row.as_json() for row in report.rows]}
    content["environment"] = _ordered(plain(report.environment))
    write_whole(path, dumps({**head, **content}))


def dumps(document: Any) -> str:
    """Strict JSON of plain values, dataclasses' dictionaries, enumerations and whatever else has a text."""
    return json.dumps(plain(document), indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's own types."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else json.dumps(float(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def _ordered(value: Any) -> Any:
    """Mappings that come in no fixed order by their keys."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return value
