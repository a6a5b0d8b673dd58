"""The file of results: one JSON object a line, the first about the run, the others about one mutant each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Results:
    """``about``: how the mutants were chosen and where they ran; ``records`` by mutant's key, the latest counts."""

    about: dict[str, Any] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


def read(file: Path) -> Results:
    """What ``file`` holds; nothing where there is no such file. A last line that was cut off is dropped."""
    results = Results()
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if "key" in value:
            results.records[value["key"]] = value
        else:
            results.about = value
    return results


def compact(file: Path) -> int:
    """Leave the last run's line and the latest record of every mutant that it chose; returns how many lines went."""
    before, results = len(file.read_text().splitlines()), read(file)
    kept = [results.records[key] for key in results.about["chosen"] if key in results.records]
    beside = file.with_name(f".{file.name}.partial")
    beside.write_text("".join(json.dumps(value) + "\n" for value in (results.about, *kept)))
    beside.replace(file)
    return before - 1 - len(kept)


def append(file: Path, value: dict[str, Any]) -> None:
    """Add one line; it is on the disk when this returns."""
    with file.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
