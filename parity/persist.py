"""A trace as a folder: ``trace.json`` beside ``tensors.safetensors``; written on one machine, compared on another."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from parity.errors import InputError
from parity.files import misfit, read_object, read_tensors, write_folder
from parity.trace import Point, StepAudit, Trace

FORMAT = 2
"""Format 1, which is read too, has no ``ties`` in its points and no audits."""

META, TENSORS = "trace.json", "tensors.safetensors"


class StoredPoint(BaseModel):
    """One micro-batch of the curve; a number that is not finite is a word."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    loss: float
    step_losses: tuple[float, ...]
    grad_norm: float | None
    lr_used: float
    lr_after: float
    correct: int
    rows: int
    top: tuple[int, ...]
    ties: tuple[int, ...] = ()
    stepped: bool
    logged: dict[str, float]


class Stored(BaseModel):
    """``trace.json``."""

    model_config = ConfigDict(extra="forbid")

    format_version: int
    run: str
    case: str
    dtype: str
    curve: list[StoredPoint]
    prints: list[str]
    configuration: dict[str, Any]
    environment: dict[str, Any]
    trained: list[str]
    frozen: list[str]
    calls: list[str]
    left_out: list[Literal["init", "after", "final", "calls"]] = []
    audits: list[dict[str, Any]] = []
    tensors: list[str]


def write_trace(trace: Trace, folder: str | Path) -> Path:
    """Write a trace, whole or not at all; what lay there before is replaced.

    Raises:
        InputError: the folder cannot be written.
    """
    content = {name: value for name, value in vars(trace).items() if name != "tensors"}
    content["curve"] = [asdict(point) for point in trace.curve]
    content["audits"] = [audit.as_json() for audit in trace.audits]
    document = _plain({"format_version": FORMAT, **content, "tensors": sorted(trace.tensors)})

    def fill(partial: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in trace.tensors.items()}
        save_file(tensors, partial / TENSORS)
        (partial / META).write_text(json.dumps(document, indent=1, default=str) + "\n")

    return write_folder(Path(folder), fill)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_trace(folder: str | Path) -> Trace:
    """Read what :func:`write_trace` wrote, perhaps elsewhere and under other versions.

    Raises:
        InputError: no such folder, a damaged file, another format, or tensors that the list does not name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "trace", "no such folder", "a folder that parity trace or write_trace wrote")
    stored = _stored(folder / META)
    tensors = read_tensors(folder / TENSORS)
    odd = sorted(set(tensors) ^ set(stored.tensors))
    if odd:
        found = "a tensor that trace.json does not list" if odd[0] in tensors else "missing"
        raise InputError(folder / TENSORS, odd[0], found, "the tensors that trace.json lists")
    return Trace(
        run=stored.run,
        case=stored.case,
        dtype=stored.dtype,
        tensors=tensors,
        curve=[Point(**point.model_dump()) for point in stored.curve],
        prints=stored.prints,
        configuration=stored.configuration,
        environment=stored.environment,
        trained=tuple(stored.trained),
        frozen=tuple(stored.frozen),
        calls=_calls(folder / META, stored.calls),
        left_out=tuple(stored.left_out),
        audits=[StepAudit.from_json(value) for value in stored.audits],
    )


def _stored(file: Path) -> Stored:
    document = read_object(file, "a trace's trace.json")
    version = document.get("format_version")
    if version not in (1, FORMAT):
        raise InputError(file, "format_version", repr(version)[:80], f"1 or {FORMAT}")
    try:
        return Stored.model_validate(document)
    except ValidationError as error:
        raise misfit(file, error) from error


def _calls(file: Path, calls: list[str]) -> tuple[str, ...]:
    for call in calls:
        module, mark, number = call.rpartition("#")
        if not (module and mark and number.isdecimal() and len(number) < 10):
            raise InputError(file, "calls", repr(call)[:80], "module#number")
    return tuple(calls)
