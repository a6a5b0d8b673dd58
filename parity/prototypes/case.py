"""What is run: one case, read from a recording's ``meta.json`` and the fixture beside it.

Layout of a recordings folder (any folder of this layout works)::

    <root>/fixture/{verifier/, draft_<algorithm>.json, data_<algorithm>/, t2d.npy, d2t.npy}
    <root>/initial_<algorithm>_<dtype>.safetensors
    <root>/<case>/{meta.json, first_step.safetensors, trajectory.jsonl, final.safetensors, noise_uniforms.safetensors}

``fixture/`` and the initial weights may also lie inside the case's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parity.errors import InputError
from parity.files import read_object

Algorithm = Literal["eagle3", "hass"]
Dtype = Literal["fp32", "bf16", "bf16ds"]

DEFAULTS: dict[str, float] = {
    "lr": 3e-5,
    "bs": 4,
    "gradient-accumulation-steps": 1,
    "epoch": 40,
    "topk": 10,
    "forward_num_total": 3,
}
"""The prototypes' own, for flags that a recorded command line leaves out."""

LEAST = {"lr": 0, "epoch": 0}
"""Smallest values that make sense; 1 for all others."""


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


@dataclass(frozen=True)
class Case:
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


def find_cases(root: Path, algorithm: str | None = None, keyword: str = "") -> list[Case]:
    """All cases below ``root`` in name order, of one algorithm and with ``keyword`` in the name.

    Raises:
        InputError: no such folder, or no case in it.
    """
    if not root.is_dir():
        raise InputError(root, "recordings", "no such folder", "a folder of recorded cases")
    cases = [read_case(file.parent) for file in _meta_files(root)]
    if not cases:
        raise InputError(root, "recordings", "no case (a folder with meta.json)", "at least one")
    return [case for case in cases if keyword in case.name and algorithm in (None, case.algorithm)]


def _meta_files(root: Path) -> Iterator[Path]:
    return iter(sorted(root.glob("*/meta.json")) or sorted(root.glob("meta.json")))


def read_case(directory: Path) -> Case:
    """The case recorded in ``directory``.

    Raises:
        InputError: a missing file or a field of ``meta.json`` that does not fit.
    """
    meta = _read_meta(directory / "meta.json")
    fixture = _beside(directory, "fixture", directory / "meta.json")
    flags = _flags(directory / "meta.json", meta.argv)
    numbers = {name: _number(directory / "meta.json", flags, name) for name in DEFAULTS}
    _check_order(directory / "meta.json", meta, int(numbers["bs"]), int(numbers["epoch"]))
    paths = {name: Path(flags[name].replace("FIXTURE", str(fixture))) for name in ("configpath", "tmpdir")}
    for name, path in paths.items():
        if not _exists(path):
            raise InputError(
                directory / "meta.json", f"argv --{name}", f"{path}, which does not exist", "a fixture file"
            )
    return Case(
        name=meta.case,
        algorithm=meta.which,
        dtype=meta.dtype,
        directory=directory,
        fixture=fixture,
        initial=_beside(directory, meta.initial, directory / "meta.json"),
        configpath=paths["configpath"],
        tmpdir=paths["tmpdir"],
        lr=numbers["lr"],
        bs=int(numbers["bs"]),
        accumulation=int(numbers["gradient-accumulation-steps"]),
        epoch=int(numbers["epoch"]),
        topk=int(numbers["topk"]),
        ttt_steps=int(numbers["forward_num_total"]),
        noise=meta.noise,
        shuffle=meta.shuffle,
        order=tuple(meta.sample_index_order),
        meta=meta,
    )


def _read_meta(file: Path) -> Meta:
    try:
        return Meta.model_validate(read_object(file, "a recording's meta.json"))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(file, ".".join(map(str, first["loc"])), repr(first.get("input"))[:80], first["msg"]) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _number(file: Path, flags: dict[str, str], name: str) -> float:
    """A flag's value, or the prototypes' default."""
    default = DEFAULTS[name]
    try:
        value = type(default)(flags.get(name, default))
    except ValueError:
        value = math.nan
    if not LEAST.get(name, 1) <= value < math.inf:  # NaN fits nowhere
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise InputError(file, f"argv --{name}", flags[name][:80], f"{kind} of at least {LEAST.get(name, 1)}")
    return value


def _check_order(file: Path, meta: Meta, bs: int, epoch: int) -> None:
    """Does the recorded order fill every pass?"""
    count, order = len(meta.samples_files), meta.sample_index_order
    if count < bs:
        raise InputError(file, "samples_files", f"{count} samples", f"at least one batch of {bs}")
    visits = count // bs * bs * (epoch + 1)
    if len(order) < visits:
        raise InputError(file, "sample_index_order", f"{len(order)} visits", f"{visits} in {epoch + 1} passes")
    wrong = [index for index in order if not 0 <= index < count]
    if wrong:
        raise InputError(file, "sample_index_order", wrong[0], f"indices from 0 to {count - 1}")


def _beside(directory: Path, name: str, file: Path) -> Path:
    """``name`` in the case's folder or in the one above it."""
    for folder in (directory, directory.parent):
        if _exists(folder / name):
            return folder / name
    raise InputError(file, name, "missing", f"{name} in the case's folder or beside it")


def _flags(file: Path, argv: list[str]) -> dict[str, str]:
    """``--name value`` pairs of a recorded command line."""
    words = iter(argv)
    flags = {}
    for word in words:
        if not word.startswith("--"):
            raise InputError(file, "argv", word, "a flag")
        name, joined, value = word[2:].partition("=")
        flags[name] = value if joined else next(words, "")
    for name in ("configpath", "tmpdir"):
        if not flags.get(name):
            raise InputError(file, f"argv --{name}", "missing", "a path below FIXTURE")
    return flags
