"""A process that runs an original: how it is started, and how it answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from parity.errors import InputError

LAST_LINES = 15
"""Of its standard error, in the message about a run that failed."""


class OriginalRunError(RuntimeError):
    """The child process failed or ran out of time; the message ends with the last lines of its stderr."""


def run_child(
    module: str, words: list[str], cwd: Path, environment: dict[str, str], what: str, timeout: float | None
) -> None:
    """Run ``python -m module words`` in ``cwd``; ``what`` names it in errors, ``timeout`` is in seconds.

    Raises:
        OriginalRunError: it failed or ran out of time.
    """
    errors = cwd / "stderr.txt"
    with errors.open("wb") as stderr, (cwd / "stdout.txt").open("wb") as stdout:
        try:
            code = subprocess.run(
                [sys.executable, "-m", module, *words],
                cwd=cwd,
                env=environment,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise OriginalRunError(_explained(what, f"ran longer than {timeout} s", errors)) from error
    if code != 0:
        raise OriginalRunError(_explained(what, f"ended with exit status {code}", errors))


def _explained(what: str, became: str, errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    tail = "\n".join(f"  {line}" for line in lines) or "  (nothing on stderr)"
    return f"{what}, {became}:\n{tail}"


def answer(run: Callable[[], object]) -> int:
    """In the child: run, and return the exit code; bad input is said on stderr."""
    try:
        from ports._torchaudio import skip_torchaudio

        skip_torchaudio()
        run()
    except InputError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
