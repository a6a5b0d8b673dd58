"""Sides that run elsewhere or ran before: a command in a process of its own, a folder, a trace at hand."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from parity.allowed import Disturbance
from parity.errors import InputError
from parity.side import Run
from parity.trace import META, Trace, read_trace

PLACE, DRAW = "{out}", "{draw}"


LAST_LINES = 15
"""Of what a command that failed says."""


class SideError(RuntimeError):
    """A side in a process of its own ended badly."""


@dataclass(frozen=True)
class TraceSide:
    """A trace at hand, as a side."""

    found: Trace

    @property
    def name(self) -> str:
        return self.found.run

    @contextmanager
    def trace(self, case: Any) -> Iterator[Run]:
        """The trace."""
        yield Run(self.found)


@dataclass(frozen=True)
class FolderSide:
    """A side whose traces were written before: the folder is a trace, or has one a case, by the case's name."""

    folder: Path
    name: str = ""

    @contextmanager
    def trace(self, case: Any) -> Iterator[Run]:
        """Reads it; InputError as :func:`read_trace` has it."""
        found = read_trace(self.folder if (self.folder / META).exists() else self.folder / case.name)
        yield Run(replace(found, run=self.name or found.run))


@dataclass(frozen=True)
class CommandSide:
    """A side in a process of its own, on this machine, that leaves a trace.

    ``{out}`` in its words is the trace's folder, ``{case}`` the case's name. One with ``{draw}`` is run again with the
    numbers 1, 2, ... in its place, 0 the first time: then it is to move its weights and inputs by ``parity.moved``.
    """

    words: Sequence[str]
    name: str = ""
    timeout: float = 3600

    @contextmanager
    def trace(self, case: Any) -> Iterator[Run]:
        """Runs the command.

        Raises:
            InputError: no ``{out}`` in its words, or a folder that is no trace; else as :func:`run_command`.
        """
        with tempfile.TemporaryDirectory() as folder, self._run(case, Path(folder), 0).trace(case) as ran:
            yield ran

    def draw(
        self, case: Any, number: int, precision: torch.dtype, disturbance: Disturbance | None = None
    ) -> Trace | None:
        """The same, moved; None where the command has no word for it, and of what is done to steps in its process."""
        if disturbance is not None or not any(DRAW in word for word in self.words):
            return None
        with tempfile.TemporaryDirectory() as folder, self._run(case, Path(folder), number).trace(case) as ran:
            return ran.trace

    def _run(self, case: Any, folder: Path, number: int) -> FolderSide:
        """Where a draw's trace lies once the command has run."""
        program, out = self.words[0] if self.words else "command", folder / "trace"
        if not any(PLACE in word for word in self.words):
            raise InputError(program, "words", list(self.words), f"{PLACE}, where the trace goes, in one of them")
        words = {PLACE: str(out), DRAW: str(number), "{case}": str(case.name)}
        run_command(
            [reduce(lambda word, key: word.replace(key, words[key]), words, one) for one in self.words],
            program,
            self.timeout,
        )
        return FolderSide(out, self.name)


def run_command(words: Sequence[str], what: str, timeout: float | None, **options: Any) -> None:
    """Run a program to its end; ``what`` names it in errors, ``timeout`` is in seconds, ``options`` are subprocess'.

    Raises:
        InputError: no such program.
        SideError: it failed or ran out of time; with its last error and the last lines of its standard error.
    """
    try:
        done = subprocess.run(words, capture_output=True, timeout=timeout, check=False, **options)
        became, said = f"ended with exit code {done.returncode}", done.stderr
        if not done.returncode:
            return
    except subprocess.TimeoutExpired as error:
        became, said = f"did not end within {timeout} s", error.stderr or b""
    except OSError as error:
        raise InputError(words[0], "command", str(error), "a program") from error
    lines = said.decode(errors="replace").strip().splitlines() or ["nothing on its standard error"]
    last = lines[-LAST_LINES:]
    errors = [line.strip() for line in lines if "Error: " in line and line not in last[:1]]  # others may speak after it
    raise SideError(f"{what} {became}: " + "\n".join([*errors[-1:], *last]))
