"""Eagle3's command line."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ports.training.settings import TrainingSettings


class Eagle3Settings(TrainingSettings):
    """Train an Eagle3 draft for a verifier; the result is a Speculators checkpoint."""

    t2d: Path = Field(Path("t2d.npy"), description="bool [V]: which verifier tokens the draft can say")
    d2t: Path = Field(Path("d2t.npy"), description="int64 [D]: verifier id of each draft id, minus the draft id")
