"""A side that is a command: run it, read the trace it leaves."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from parity.errors import InputError
from parity.kit.side import Command
from parity.trace import Trace
from parity.trace_folder import read_trace

PLACE = "{out}"


def run_command(side: Command) -> Trace:
    """The trace of a command.

    Raises:
        InputError: no ``{out}`` in its words, a command that fails or runs out of time, or a folder that is no trace.
    """
    name = side.words[0] if side.words else "command"
    if not any(PLACE in word for word in side.words):
        raise InputError(name, "words", list(side.words), f"{PLACE}, where the trace goes, in one of them")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trace"
        words = [word.replace(PLACE, str(out)) for word in side.words]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=side.timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(name, "command", str(error), "a command that ends") from error
        if done.returncode:
            tail = done.stderr.strip()[-500:]
            raise InputError(name, "exit code", f"{done.returncode}: {tail}", "0")
        trace = read_trace(out)
    return replace(trace, run=side.name or trace.run)
