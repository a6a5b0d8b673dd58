"""Start the child process that runs another original, and read what it left."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from parity.files import read_object, read_tensors
from parity.prototypes.case import Case
from parity.prototypes.original.child import plain_environment, run_child
from parity.prototypes.others.batch import require_plain
from parity.prototypes.others.checkout import Other, require_other

WORKER = "parity.prototypes.others.worker"


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
        words = [other.name, root.resolve(), case.directory.resolve(), scratch / "out"]
        what = f"{other.name}, case {case.name}"
        run_child(WORKER, [*map(str, words)], scratch, plain_environment(threads=1), what, timeout)
        tensors, facts = read_tensors(scratch / "out" / "trace.safetensors"), read_object(scratch / "out/facts.json")
    return OtherTrace(other.name, case.name, tensors, facts)
