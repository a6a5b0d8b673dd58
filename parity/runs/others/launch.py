"""Start the child process that runs another original, and read what it left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from parity.case import Case
from parity.files import read_object, read_tensors
from parity.runs.original.launch import OriginalRunError, plain_environment
from parity.runs.others.batch import require_plain
from parity.runs.others.checkout import Other, require_other

WORKER = "parity.runs.others.worker"
_LAST_LINES = 15


@dataclass(frozen=True)
class OtherTrace:
    """What another original computed on the first batch of a case.

    ``tensors``: ``step{s}.{hidden,logits,loss}``, ``loss``, ``grad.<parameter>`` by Speculators' names.
    ``facts``: what was arranged from outside, and settings read from the running script.
    """

    original: str
    case: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def run_other(root: Path, other: Other, case: Case, timeout: float | None = 600.0) -> OtherTrace:
    """Run an original of a verified checkout on the first batch of ``case``; ``timeout`` is in seconds.

    Raises:
        InputError: another checkout, or a case it cannot be given.
        OriginalRunError: the process failed or ran out of time; ends with the last lines of its stderr.
    """
    require_other(root, other)
    require_plain(case)
    with tempfile.TemporaryDirectory(prefix="parity-other-") as name:
        scratch = Path(name)
        (scratch / "work").mkdir()
        words = [other.name, root.resolve(), case.directory.resolve(), scratch / "out"]
        _run([sys.executable, "-m", WORKER, *map(str, words)], scratch, f"{other.name}, case {case.name}", timeout)
        tensors, facts = read_tensors(scratch / "out" / "trace.safetensors"), read_object(scratch / "out/facts.json")
    return OtherTrace(other.name, case.name, tensors, facts)


def _run(command: list[str], scratch: Path, what: str, timeout: float | None) -> None:
    errors = scratch / "stderr.txt"
    with errors.open("wb") as stderr, (scratch / "stdout.txt").open("wb") as stdout:
        try:
            code = subprocess.run(
                command,
                cwd=scratch / "work",
                env=plain_environment(threads=1),
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise OriginalRunError(f"{what}, ran longer than {timeout} s{_tail(errors)}") from error
    if code != 0:
        raise OriginalRunError(f"{what}, ended with exit status {code}{_tail(errors)}")


def _tail(errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return ":\n" + ("\n".join(f"  {line}" for line in lines) or "  (nothing on stderr)")
