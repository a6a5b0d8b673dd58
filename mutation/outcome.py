"""What became of a mutant, from how its process ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutation import worker

if TYPE_CHECKING:
    from mutation.mutants import Mutant

FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")
"""The folders of an absolute path: of the machine, and another one's for every mutant."""


@dataclass
class Running:
    """A mutant under judgement."""

    mutant: Mutant
    change: list[str]
    folder: Path
    started: float = field(default_factory=time.monotonic)


def ended(one: Running, status: int, pid: int) -> dict[str, Any]:
    """The record of a mutant whose process ended with a wait status; clears away what it left."""
    seconds = time.monotonic() - one.started
    kill_group(pid)  # whatever it started
    result = one.folder / worker.RESULT
    if result.exists():
        found = json.loads(result.read_text())
        known = record(one.mutant, one.change, "killed" if found else "survived", found)
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        slow = number in (signal.SIGPROF, signal.SIGKILL)
        known = record(one.mutant, one.change, "killed", {"check": "time limit" if slow else "crash"})
    else:
        last = (one.folder / "output").read_text(errors="replace").strip().splitlines()[-1:]
        known = record(one.mutant, one.change, "killed", {"check": "crash", "detail": "".join(last)[:200]})
    shutil.rmtree(one.folder, ignore_errors=True)
    return {**known, "seconds": round(seconds, 2)}


def record(mutant: Mutant, change: list[str], outcome: str, more: dict[str, Any]) -> dict[str, Any]:
    """One line of the results."""
    return {
        "key": mutant.key,
        "file": mutant.file,
        "group": mutant.group,
        "line": mutant.place[0],
        "column": mutant.place[1],
        "operator": mutant.operator.rpartition("/")[2],
        "change": change,
        "outcome": outcome,
        **({"reached": True} if outcome == "survived" else {}),
        **{name: FOLDERS.sub("", value) if name == "detail" else value for name, value in more.items()},
    }


def kill_group(pid: int) -> None:
    """End a process and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
