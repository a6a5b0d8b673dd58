"""Where a run stands at the end of an optimizer step, as ``state.json`` holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ports.training.checkpoint import FOLDER
from ports.training.checkpoint.manifest import FORMAT_VERSION, explain, read_json

FILE = f"{FOLDER}/state.json"


Count = Annotated[int, Field(ge=0, lt=2**53)]
"""Larger numbers count nothing, and some of what reads them overflows."""


class Strict(BaseModel):
    """No other fields, no converted types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Totals(Strict):
    """Sums over the pass so far on one process."""

    loss: float
    batches: Count
    correct: Count
    rows: Count
    skipped: Count
    empty: Count = 0


class Schedule(Strict):
    """The scheduler's counters, and the rates that the next step will use."""

    last_epoch: Count
    step_count: Count
    rates: list[float]


class Log(Strict):
    """How far ``metrics.jsonl`` reached, and what it held."""

    bytes: Count
    sha256: str


class State(Strict):
    """``state.json``.

    ``serial`` counts the checkpoints of a directory, ``best`` is the number and mean loss of the best pass.
    """

    format_version: int = FORMAT_VERSION
    serial: Count
    epoch: Count
    micro_batch: Count
    steps: Count
    processes: list[Totals] = Field(min_length=1)
    schedule: Schedule
    log: Log
    best: tuple[int, float] | None = None
    fingerprint: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=dict)
    numerics: dict[str, str | int | bool] = Field(default_factory=dict)


def write_state(directory: Path, state: State) -> None:
    """Floats are written so that they read back to the bit."""
    (directory / FILE).write_text(state.model_dump_json(indent=1) + "\n")


def read_state(directory: Path) -> State:
    """The state that lies in a checkpoint.

    Raises:
        InputError: unreadable, of a newer format, or a field that does not fit.
    """
    file = directory / FILE
    content = read_json(file, "state")
    best = content.get("best")
    if isinstance(best, list):
        content["best"] = tuple(best)
    try:
        return State.model_validate(content)
    except ValidationError as error:
        raise explain(file, error) from error
