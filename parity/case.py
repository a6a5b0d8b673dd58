"""What is run: one case, read from a recording's ``meta.json`` and the fixture beside it.

Layout of a recordings folder (any folder of this layout works)::

    <root>/fixture/{verifier/, draft_<algorithm>.json, data_<algorithm>/, t2d.npy, d2t.npy}
    <root>/initial_<algorithm>_<dtype>.safetensors
    <root>/<case>/{meta.json, first_step.safetensors, trajectory.jsonl, final.safetensors, noise_uniforms.safetensors}

``fixture/`` and the initial weights may also lie inside the case's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parity.errors import InputError

Algorithm = Literal["eagle3", "hass"]
Dtype = Literal["fp32", "bf16", "bf16ds"]


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
    paths = {name: Path(flags[name].replace("FIXTURE", str(fixture))) for name in ("configpath", "tmpdir")}
    for name, path in paths.items():
        if not path.exists():
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
        lr=float(flags.get("lr", 3e-5)),
        bs=int(flags.get("bs", 4)),
        accumulation=int(flags.get("gradient-accumulation-steps", 1)),
        epoch=int(flags.get("epoch", 40)),
        topk=int(flags.get("topk", 10)),
        ttt_steps=int(flags.get("forward_num_total", 3)),
        noise=meta.noise,
        shuffle=meta.shuffle,
        order=tuple(meta.sample_index_order),
        meta=meta,
    )


def _read_meta(file: Path) -> Meta:
    try:
        return Meta.model_validate(json.loads(file.read_text()))
    except OSError as error:
        raise InputError(file, "file", error.strerror or "unreadable", "a recording's meta.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(file, "file", str(error), "a JSON object") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(file, ".".join(map(str, first["loc"])), repr(first.get("input"))[:80], first["msg"]) from error


def _beside(directory: Path, name: str, file: Path) -> Path:
    """``name`` in the case's folder or in the one above it."""
    for folder in (directory, directory.parent):
        if (folder / name).exists():
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
