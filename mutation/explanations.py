"""Why a survivor lives: ``survivors.yaml``, an entry for each reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("survivors.yaml")
KEYS = {"why", "file", "line", "operator", "change", "equivalent"}


@dataclass(frozen=True)
class Explanation:
    """Holds for survivors of ``file`` whose source line contains ``line``; ``file`` and ``operator`` are globs.

    ``change`` must be in the mutated line. What an entry leaves out fits everything but ``why``. ``equivalent``: the
    mutant computes the same numbers from everything that can be handed to it.
    """

    why: str
    file: str = "*"
    line: str = ""
    operator: str = "*"
    change: str = ""
    equivalent: bool = False

    def fits(self, record: dict[str, Any]) -> bool:
        before, after = (" ".join(line[1:] for line in record["change"] if line[0] == mark) for mark in "-+")
        return (
            fnmatchcase(record["file"], self.file)
            and fnmatchcase(record["operator"], self.operator)
            and self.line in before
            and self.change in after
        )


def load(file: Path = FILE) -> list[Explanation]:
    """The entries in order.

    Raises:
        ValueError: an entry without a reason, or with a key that means nothing.
    """
    entries = yaml.safe_load(file.read_text()) or []
    for entry in entries:
        if not entry.get("why") or set(entry) - KEYS:
            raise ValueError(f"{file}: found {entry}, expected why, and any of {sorted(KEYS)}")
    return [Explanation(**entry) for entry in entries]


def explain(record: dict[str, Any], entries: Sequence[Explanation]) -> Explanation | None:
    """The first entry that fits a survivor."""
    return next((entry for entry in entries if entry.fits(record)), None)
