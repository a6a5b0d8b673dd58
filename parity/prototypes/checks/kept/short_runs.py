"""Short runs of a case, and what they leave in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity.environment import quietly
from parity.errors import InputError
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.port import start_port

STEPS = 3
"""Optimizer steps of a short run."""


def short_run(evidence: Evidence, cpdir: Path, **changes: Any) -> Any:
    """A loop of a few steps, within a pass, that saves after each of them."""
    own = {"max_steps": STEPS, "save_steps": 1, "bs": 1, "gradient_accumulation_steps": 1}
    return start_port(evidence.case, cpdir, live=True, **{**own, **changes})


def steps_of_auto(evidence: Evidence, cpdir: Path, **changes: Any) -> int | str:
    """Where a run with ``--ckpt_path auto`` begins, or the field it refuses."""
    with quietly():
        try:
            loop = short_run(evidence, cpdir, ckpt_path=Path("auto"), **changes)
        except InputError as error:
            return error.field or "?"
        loop.accelerator.end_training()
    return int(loop.steps)


def visible(cpdir: Path) -> list[str]:
    """Names of the directories that are not hidden."""
    return sorted(path.name for path in cpdir.iterdir() if path.is_dir() and not path.name.startswith("."))
