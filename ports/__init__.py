"""Research training prototypes, ported to train Speculators models natively.

What the first import of this package does, before any library is loaded: Ctrl-C while a command loads its libraries,
for seconds and before any of its own code runs, is a line too. And a broken torchaudio does not break ``import
transformers``: Speculators requires it and nothing here uses it; beside a torch of another build (CPU, other CUDA) its
import raises ``OSError``, and transformers imports it wherever it is found.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

SCRIPTS = {"parity", "speculator"}


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


def skip_torchaudio() -> None:
    """Let transformers conclude, once, that a torchaudio whose import fails is absent; any other is left alone."""
    if {"torchaudio", "transformers.audio_utils"} & sys.modules.keys() or find_spec("torchaudio") is None:
        return
    try:
        importlib.import_module("torchaudio")
    except Exception:  # what a library of another build raises
        sys.modules["torchaudio"] = None  # type: ignore[assignment]
        with suppress(ModuleNotFoundError):
            importlib.import_module("transformers.audio_utils")
        del sys.modules["torchaudio"]


quiet_interrupt()
skip_torchaudio()
