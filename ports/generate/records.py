"""Records on disk: deterministic bytes, whole or not at all, and a manifest of what a directory was made from.

A run that goes on must be the same run: it starts with the manifest, or holds itself against the one that is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ports.errors import InputError
from ports.files import read_json
from ports.training.checkpoint import write_file
from ports.training.online import PROTOTYPE_DTYPE, chosen_layers
from ports.training.records import GENERATION, OLDER, SCHEMA, SUFFIX, SUFFIXES, RecordInfo, check_rows, parse_info
from ports.verifier.config import verifier_config

HEADER_BYTES = 640
"""What a record's header takes, about."""


@dataclass(frozen=True)
class Row:
    """A dialogue that will be a record: its number in the data set's order, ``ids`` [T] and ``loss_mask`` [T].

    ``cut`` counts the answers that were cut where they were made.
    """

    number: int
    ids: list[int]
    loss_mask: list[int]
    cut: int = 0


@dataclass(frozen=True)
class Geometry:
    """What is read from the verifier, before it is loaded; ``hidden_size`` 0 stands for records without features.

    ``layers`` are entries of ``hidden_states``, none for HASS; ``positions`` are those that its config names, if it
    does.
    """

    hidden_size: int
    layers: list[int] | None
    dtype: str
    positions: int | None = None

    @property
    def item_bytes(self) -> int:
        """Of a number in ``dtype``."""
        return int(getattr(torch, self.dtype).itemsize)

    def bytes_of(self, length: int) -> int:
        """Size of a record of that many tokens: ids and mask in int64, features, and with layers a target."""
        states = 1 if self.layers is None else len(self.layers) + 1
        return HEADER_BYTES + length * (16 + states * self.hidden_size * self.item_bytes)

    def __str__(self) -> str:
        if not self.hidden_size:
            return "no features"
        return f"features of entries {self.layers or 'last'} in {self.dtype}"


def geometry_of(algorithm: str, model_path: str, aux_layers: str = "prototype", dtype: str = "default") -> Geometry:
    """From the verifier's config.

    Raises:
        InputError: no readable config, or layers that the verifier does not have.
    """
    config = verifier_config(model_path)
    layers = chosen_layers(aux_layers, model_path, config.num_hidden_layers) if algorithm == "eagle3" else None
    dtype = PROTOTYPE_DTYPE.get(algorithm, "auto") if dtype == "default" else dtype
    size = 0 if algorithm == "ids" else config.hidden_size
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Geometry(size, layers, own if dtype == "auto" else dtype, getattr(config, "max_position_embeddings", None))


@dataclass(frozen=True)
class Manifest:
    """``outdir/generation.json``: a run that goes on must be the same.

    ``rows`` digests the ids and masks of all dialogues in order; ``chat`` is the family that was put around them
    (:class:`~ports.generate.families.ChatFamily`), which the draft's own directory keeps; ``engine`` is
    ``transformers``, or ``vllm`` with its version.
    """

    algorithm: str
    verifier: str
    tokenizer: str
    feature_layers: list[int]
    dtype: str
    device: str
    engine: str
    matmul_precision: str
    chat_template: str
    chat: dict[str, Any]
    loss_mask: str
    batch_tokens: int
    processes: list[int]
    tokens: int
    supervised: int
    rows: str
    format_version: int = SCHEMA

    def info(self, row: Row) -> RecordInfo:
        """What the record of ``row`` says about itself."""
        common = ("algorithm", "verifier", "tokenizer", "feature_layers", "loss_mask", "chat_template")
        return RecordInfo(row=row.number, **{name: getattr(self, name) for name in common})


def write_manifest(file: Path, content: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_file(file, (json.dumps(content, indent=1) + "\n").encode())


def start_or_go_on(
    file: Path,
    made: Mapping[str, Any],
    field: str,
    lies_there: str,
    unsaid: Mapping[str, Any] = {},
    anew: str = "",
    **more: Any,
) -> dict[str, Any]:
    """What the manifest ``file`` says, once it says what is ``made`` by this command.

    It is written if there is none, and anew where nothing else lies there: a command that failed before it made
    anything, for its verifier was damaged say, does not bind the next.

    Args:
        file: the manifest.
        made: what must be the same, by name.
        field: the flag that names the place, for errors.
        lies_there: what such a command would have left there; empty: nothing.
        unsaid: what a manifest meant that does not name a setting, since there was none then.
        anew: the flag that drops what lies there, for errors, where the command has one.
        more: what a new manifest says besides.

    Raises:
        InputError: something lies there without a manifest, or with one that says otherwise or cannot be read.
    """
    made = {"format_version": SCHEMA, **made}
    elsewhere = f"another --{field}" + (f" or {anew}" if anew else "")
    if lies_there and not file.exists():
        raise InputError(file.parent, field, f"{lies_there} without {file.name}", "what this command left, or nothing")
    if not lies_there:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(file, {**made, **more})
    content = read_json(file, "manifest", "what this command wrote")
    if not isinstance(content, dict):
        raise InputError(file, "manifest", type(content).__name__, "what this command wrote")
    version = content.get("format_version", 1)
    if version != SCHEMA:
        why = OLDER if version == 1 else "written by another release: make it anew"
        raise InputError(file, "format_version", version, f"{SCHEMA}; {why}, in {elsewhere}")
    for name, value in made.items():
        found = content.get(name, unsaid.get(name, "nothing"))
        if found != value:
            raise InputError(file, name, found, f"{value}, as this command says; another one takes {elsewhere}")
    return content


def digest(items: Iterable[Any]) -> str:
    """16 hex digits of what JSON can hold, in order."""
    content = hashlib.sha256()
    for item in items:
        content.update(json.dumps(item).encode())
    return content.hexdigest()[:16]


def write_or_check(outdir: Path, manifest: Manifest) -> None:
    """Start ``outdir``, or go on in it.

    Raises:
        InputError: another run's records are in there, or some that no manifest tells about.
    """
    there = outdir.is_dir() and any(each.suffix in SUFFIXES for each in outdir.rglob("*"))
    start_or_go_on(outdir / GENERATION, asdict(manifest), "out", "records" if there else "")


def record_file(folder: Path, index: int) -> Path:
    """``data_<index>.safetensors``, as the prototypes number theirs."""
    return folder / f"data_{index}{SUFFIX}"


def write_record(file: Path, tensors: Mapping[str, Tensor], info: RecordInfo) -> None:
    """One record at ``file``.

    Raises:
        InputError: a feature that is NaN or Inf, rows that no verifier computes, or a disk that is full or broken.
    """
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    states = {name: value for name, value in plain.items() if value.is_floating_point()}
    for name, value in states.items():
        if not bool(value.isfinite().all()):
            expected = f"finite values: {value.dtype} cannot hold what the verifier computes, see --dtype"
            raise InputError(file, name, "NaN or Inf", expected)
    check_rows(file, states, plain["input_ids"])
    write_file(file, save(plain, info.as_metadata()))


def is_whole(file: Path, info: RecordInfo) -> bool:
    """Does ``file`` hold the record that ``info`` describes? Its header tells whether a byte is missing."""
    try:
        with safe_open(file, "pt") as record:
            return parse_info(file, record.metadata()) == info
    except (OSError, SafetensorError, InputError):
        return False
