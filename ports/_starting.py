"""Ctrl-C while a command loads its libraries, for seconds and before any of its own code runs, is a line too."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

SCRIPTS = {"parity", "eagle3-train", "hass-train", "speculator-estimate", "speculator-generate"}


def is_command(program: str) -> bool:
    """Is this process one of ours? ``-m`` is the name of ``python -m ports.x`` while it looks for the module."""
    return program == "-m" or Path(program).name in SCRIPTS


def quiet_interrupt() -> None:
    """In a command an interrupt that nobody catches leaves no traceback; python then ends as Ctrl-C ends programs."""
    if not is_command(sys.argv[0] if sys.argv else ""):
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook
