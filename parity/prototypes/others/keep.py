"""What a run of another original leaves behind: tensors in the project's names, and facts about the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


class Keep:
    """Tensors as in :mod:`parity.trace` without the micro-batch: ``step{s}.hidden``, ``loss``, ``grad.<parameter>``."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.facts: dict[str, Any] = {"standins": []}

    def tensor(self, name: str, value: Tensor) -> None:
        """A copy; scalars become [1]."""
        self.tensors[name] = value.detach().reshape(value.shape or (1,)).clone().contiguous()

    def standin(self, line: str) -> None:
        """Something that was arranged from outside."""
        self.facts["standins"].append(line)

    def write(self, folder: Path) -> None:
        """``trace.safetensors`` and ``facts.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "trace.safetensors")
        (folder / "facts.json").write_text(json.dumps(self.facts, indent=1, default=str))
