"""Writing a report so that a reader never meets half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_beside(path: Path, text: str) -> None:
    """Write ``text`` to a neighbour of ``path`` and rename it: ``path`` is the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        neighbour.write_text(text, encoding="utf-8", errors="replace")
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)
