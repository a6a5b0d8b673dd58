"""What is run: one case, read from a recording's ``meta.json`` and the fixture beside it.

Layout of a recordings folder (any folder of this layout works)::

    <root>/fixture/{verifier/, draft_<algorithm>.json, data_<algorithm>/, t2d.npy, d2t.npy}
    <root>/initial_<algorithm>_<dtype>.safetensors
    <root>/<case>/{meta.json, first_step.safetensors, trajectory.jsonl, final.safetensors, noise_uniforms.safetensors}

``fixture/`` and the initial weights may also lie inside the case's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from parity.errors import InputError
from parity.files import read_object, validated
from ports.eagle3 import to_native

Algorithm = Literal["eagle3", "hass"]
Dtype = Literal["fp32", "bf16", "bf16ds"]

TO_NATIVE: dict[str, Callable[[str], str]] = {"eagle3": to_native, "hass": str}
"""The prototypes' parameter names to Speculators' names for the same tensors, by algorithm."""

SETTINGS = {name: name for name in ("lr", "bs", "epoch", "noise", "shuffle")} | {
    "accumulation": "gradient_accumulation_steps",
    "ttt_steps": "forward_num_total",
}
"""A case's hyperparameters, and what the port's settings call them."""


class Flags(BaseModel):
    """The flags of a recorded command line that the harness relies on; the defaults are the prototypes' own."""

    configpath: str
    tmpdir: str
    lr: float = Field(3e-5, ge=0, allow_inf_nan=False)
    bs: int = Field(4, ge=1)
    accumulation: int = Field(1, ge=1, alias="gradient-accumulation-steps")
    epoch: int = Field(40, ge=0)
    topk: int = Field(10, ge=1)
    ttt_steps: int = Field(3, ge=1, alias="forward_num_total")


class Meta(BaseModel):
    """The fields of ``meta.json`` that the harness relies on; others are kept for the report."""

    model_config = ConfigDict(extra="allow")

    case: str
    which: Algorithm
    dtype: Dtype
    argv: list[str]
    noise: bool
    shuffle: bool
    total_steps: int
    warm_steps: int
    sample_index_order: list[int]
    samples_files: list[str]
    initial: str
    seed: int | None = None
    prints: list[str]
    train_config: dict[str, Any] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    final_aliases: dict[str, str] = Field(default_factory=dict)

    @field_validator("case")
    @classmethod
    def _names_a_folder(cls, case: str) -> str:
        if Path(case).name != case or not case.strip(".") or not case.isprintable() or len(case) > 200:
            raise ValueError("a case is named like a folder")
        return case


@dataclass(frozen=True)
class RecordedCase:
    """One training run of a prototype: its inputs, hyperparameters and the folder of what it computed."""

    name: str
    algorithm: Algorithm
    dtype: Dtype
    directory: Path
    fixture: Path
    initial: Path
    configpath: Path
    tmpdir: Path
    lr: float
    bs: int
    accumulation: int
    epoch: int
    topk: int
    ttt_steps: int
    noise: bool
    shuffle: bool
    order: tuple[int, ...]
    meta: Meta

    @property
    def verifier(self) -> Path:
        return self.fixture / "verifier"

    @property
    def seed(self) -> int | None:
        """Set at the start of the loop; None where the script's own seeding stood."""
        return self.meta.seed

    @property
    def uniforms(self) -> Path | None:
        """The recorded noise draws, when there was noise."""
        return self.directory / "noise_uniforms.safetensors" if self.noise else None


def find_cases(root: Path, algorithm: str | None = None) -> list[RecordedCase]:
    """All cases below ``root``, or ``root`` itself, in name order; of one algorithm.

    Raises:
        InputError: no such folder, or no case in it.
    """
    if not root.is_dir():
        raise InputError(root, "recordings", "no such folder", "a folder of recorded cases")
    files = sorted(root.glob("*/meta.json")) or sorted(root.glob("meta.json"))
    if not files:
        raise InputError(root, "recordings", "no case (a folder with meta.json)", "at least one")
    cases = [read_case(file.parent) for file in files]
    return [case for case in cases if algorithm in (None, case.algorithm)]


def read_case(directory: Path) -> RecordedCase:
    """The case recorded in ``directory``.

    Raises:
        InputError: a missing file or a field of ``meta.json`` that does not fit.
    """
    file = directory / "meta.json"
    meta: Meta = validated(file, Meta, read_object(file, "a recording's meta.json"))
    fixture, flags = _beside(file, "fixture"), _flags(file, meta.argv)
    _check_order(file, meta, flags)
    return RecordedCase(
        name=meta.case,
        algorithm=meta.which,
        dtype=meta.dtype,
        directory=directory,
        fixture=fixture,
        initial=_beside(file, meta.initial),
        configpath=_below(file, fixture, "configpath", flags.configpath),
        tmpdir=_below(file, fixture, "tmpdir", flags.tmpdir),
        noise=meta.noise,
        shuffle=meta.shuffle,
        order=tuple(meta.sample_index_order),
        meta=meta,
        **flags.model_dump(exclude={"configpath", "tmpdir"}),
    )


def _flags(file: Path, argv: list[str]) -> Flags:
    """``--name value`` and ``--name=value`` of a recorded command line."""
    words, found = iter(argv), {}
    for word in words:
        if not word.startswith("--"):
            raise InputError(file, "argv", word, "a flag")
        name, joined, value = word[2:].partition("=")
        found[name] = value if joined else next(words, "")
    try:
        return Flags.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        value = found.get(str(first["loc"][0]), "nothing")
        raise InputError(file, f"argv --{first['loc'][0]}", value[:80], first["msg"]) from error


def command_line(case: RecordedCase) -> dict[str, str]:
    """The prototype's flags of a case, each with its value, ``cpdir`` aside."""
    said = {field.alias or name: str(getattr(case, name)) for name, field in Flags.model_fields.items()}
    return {"basepath": str(case.verifier), **said}


def _check_order(file: Path, meta: Meta, flags: Flags) -> None:
    """Does the recorded order fill every pass?"""
    count, order, passes = len(meta.samples_files), meta.sample_index_order, flags.epoch + 1
    if count < flags.bs:
        raise InputError(file, "samples_files", f"{count} samples", f"at least one batch of {flags.bs}")
    visits = count // flags.bs * flags.bs * passes
    if len(order) < visits:
        raise InputError(file, "sample_index_order", f"{len(order)} visits", f"{visits} in {passes} passes")
    wrong = [index for index in order if not 0 <= index < count]
    if wrong:
        raise InputError(file, "sample_index_order", wrong[0], f"indices from 0 to {count - 1}")


def _beside(file: Path, name: str) -> Path:
    """``name`` in the case's folder or in the one above it."""
    for folder in (file.parent, file.parent.parent):
        if os.path.exists(folder / name):
            return folder / name
    raise InputError(file, name, "missing", f"{name} in the case's folder or beside it")


def _below(file: Path, fixture: Path, flag: str, value: str) -> Path:
    """A path of the command line, in which ``FIXTURE`` stands for the fixture's folder."""
    path = Path(value.replace("FIXTURE", str(fixture)))
    if not value or not os.path.exists(path):
        raise InputError(file, f"argv --{flag}", f"{path}, which does not exist", "a path below FIXTURE")
    return path
