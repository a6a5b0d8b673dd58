"""Sample files, the prototypes' ``*.ckpt`` and our ``*.safetensors``: their format, how they are read, what is refused.

A record holds ``input_ids`` [T] int64, ``loss_mask`` [T] 0/1, ``hidden_state`` [T, F] and, for Eagle3, ``target``
[T, h]; in the metadata of a safetensors file one JSON object, :class:`RecordInfo`, says where it comes from. Records
come from outside: a torch pickle is loaded with ``weights_only=True``, safetensors are mapped into memory, and every
field is checked before it is used.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from torch import Tensor

from ports.errors import InputError, reason
from ports.files import check_regular, is_text, read_json
from ports.verifier.fingerprint import verifier_fingerprint

Record = dict[str, Tensor]
SUFFIX = ".safetensors"
SUFFIXES = (".ckpt", SUFFIX)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

KEY = "speculator_record"
"""The only key of the metadata: safetensors writes several in no fixed order."""

SCHEMA = 2
"""Of what a record and its directory say; 1 knew a verifier by samples of its weights alone."""

OLDER = "written by an older release, which knew a verifier by a part of its weights: make it anew"

ROW_DIGITS = 10
"""Of a row's number at most."""

SAMPLED = 64
"""Numbers of a row that are looked at first, where rows are compared."""

GENERATION = "generation.json"
"""The file in a directory of records that says what all of them were made from."""


class RecordInfo(BaseModel):
    """Where a record comes from. ``feature_layers`` are entries of ``hidden_states``; empty where there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(SCHEMA, ge=SCHEMA, le=SCHEMA)
    algorithm: str
    verifier: str
    tokenizer: str
    feature_layers: tuple[int, ...]
    loss_mask: str
    chat_template: str
    row: int

    def as_metadata(self) -> dict[str, str]:
        """What goes into the file, as long whatever the row: a record's size tells its length alone."""
        return {KEY: self.model_dump_json() + " " * (ROW_DIGITS - len(str(self.row)))}


def parse_info(file: Path, metadata: dict[str, str] | None) -> RecordInfo:
    """The info in a file's metadata; InputError for none, one that is not understood, or one of a newer release."""
    text = (metadata or {}).get(KEY)
    if text is None:
        raise InputError(file, KEY, f"metadata {sorted(metadata or {})}", "a record that speculator records wrote")
    try:
        return RecordInfo.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([KEY, *map(str, first["loc"])])
        why = f"{SCHEMA}; {OLDER}" if first["loc"] == ("schema_version",) and first["input"] == 1 else first["msg"]
        raise InputError(file, field, repr(first.get("input"))[:80], why) from error


def list_records(directory: Path, field: str = "data") -> list[Path]:
    """All records below ``directory`` in natural order (``data_2`` before ``data_10``), whatever the disk's.

    Raises:
        InputError: the directory is missing, holds no record, or one whose name is not UTF-8.
    """
    if not directory.is_dir():
        raise InputError(directory, field, "no such directory", "a directory of records")
    found = (path for path in directory.rglob("*") if path.suffix in SUFFIXES and not path.name.startswith("."))
    files = sorted(found, key=lambda path: natural_key(path.relative_to(directory)))
    if not files:
        raise InputError(directory, field, f"no {' or '.join(f'*{end}' for end in SUFFIXES)}", "at least one record")
    for file in files:
        if not is_text(str(file)):  # it could be opened, but neither printed nor logged
            raise InputError(directory, "data", f"the record {os.fsencode(file.name)!r}", "names in UTF-8")
    return files


def natural_key(path: Path) -> list[list[tuple[int, int, str]]]:
    """Sort key that compares runs of digits as numbers, folder by folder."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]
        for part in path.parts
    ]


def recorded_info(files: Iterable[Path]) -> RecordInfo | None:
    """What the first safetensors record says about all of them; the prototypes' say nothing."""
    first = next((file for file in files if file.suffix == SUFFIX), None)
    return None if first is None else load_record(first)[1]


def check_origin(
    files: Sequence[Path], algorithm: str, basepath: str, layers: Sequence[int] | None
) -> RecordInfo | None:
    """What the records say about themselves, once it fits the run; None for the prototypes', which say nothing.

    Args:
        files: the records.
        algorithm: what they must have been made for.
        basepath: the verifier of the run.
        layers: the draft config's ``eagle_aux_hidden_state_layer_ids``, if it has them.

    Raises:
        InputError: another algorithm, verifier or layers.
    """
    info = recorded_info(files)
    if info is None:
        return None
    wanted: dict[str, Any] = {"algorithm": algorithm, "verifier": verifier_fingerprint(basepath)}
    wanted |= {} if layers is None else {"feature_layers": list(layers)}
    _check_kind(files[0].parent, info, wanted, "by --verifier and the draft's config")
    return info


def complete_records(directory: Path, field: str = "data") -> list[Path]:
    """:func:`list_records`, as many as the manifests in and above ``directory`` say: another number, another draft.

    Raises:
        InputError: what that function refuses, a manifest that cannot be read, or records that are gone or were added.
    """
    files = list_records(directory, field)
    own = [file for file in files if file.suffix == SUFFIX]  # the prototypes' may lie beside
    folders = Counter(folder for file in own for folder in {file.parent, file.parent.parent})
    made = {folder: _made_in(folder / GENERATION) for folder in folders if folder.is_relative_to(directory)}
    wanted = {folder: sum(counts) for folder, counts in made.items()}
    above = _made_in(directory.parent / GENERATION)
    if directory.name.isdecimal() and int(directory.name) < len(above):  # one process' records
        wanted[directory] = above[int(directory.name)]
    for folder, number in wanted.items():
        if number and folders[folder] != number:
            expected = f"{number}, as {GENERATION} says; the command that made them makes those that are missing"
            raise InputError(folder, "records", folders[folder], expected)
    return files


def _made_in(manifest: Path) -> list[int]:
    """How many records every process made; none without a manifest."""
    if not manifest.is_file():
        return []
    content = read_json(manifest, "manifest", "what speculator records wrote")
    counts = content.get("processes") if isinstance(content, dict) else None
    if not isinstance(counts, list) or not all(type(each) is int for each in counts):
        raise InputError(manifest, "processes", repr(counts)[:80], "the number of records of every process")
    return counts


def read_record(path: Path, widths: Mapping[str, int], vocab_size: int, like: RecordInfo | None = None) -> Record:
    """One checked record.

    Args:
        path: the file.
        widths: expected last dimension of each floating field, e.g. ``{"hidden_state": 3 * h, "target": h}``.
        vocab_size: ids must lie in ``[0, vocab_size)``.
        like: a safetensors record must be of this one's kind; without ``widths`` ids and masks alone count.

    Raises:
        InputError: unreadable file, missing field, wrong shape, dtype or value, or features of another kind.
    """
    record, info = load_record(path)
    if info is not None and like is not None:
        names = ("tokenizer", "loss_mask", *(("algorithm", "verifier", "feature_layers") if widths else ()))
        _check_kind(path, info, like.model_dump(mode="json", include=set(names)), "as of the first record")
    return check_record(path, record, widths, vocab_size)


def _check_kind(place: Path, info: RecordInfo, wanted: Mapping[str, Any], why: str) -> None:
    found = info.model_dump(mode="json")
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(place, name, found[name], f"{value}, {why}")


def load_record(path: Path, mmap: bool = False) -> tuple[Mapping[str, Any], RecordInfo | None]:
    """The fields of a file, unchecked, and what it says about itself.

    A safetensors file is mapped: of its tensors no number is read before it is used; of a pickle with ``mmap``.

    Raises:
        InputError: unreadable, or no dict of tensors.
    """
    check_regular(path, "file")
    try:
        if path.suffix == SUFFIX:
            with safe_open(path, "pt") as file:
                info = parse_info(path, file.metadata())
                return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118  (no iteration)
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes run into
        advised = re.search("weights.only", str(error), re.IGNORECASE) and not isinstance(error, OSError)
        found = "a pickle of more than tensors" if advised else reason(error)  # torch's advice is to load it unsafely
        raise InputError(path, "file", found, "a whole file of plain tensors") from error
    if not isinstance(record, Mapping):
        raise InputError(path, "file", type(record).__name__, "a dict of tensors")
    return record, None


def record_header(path: Path) -> Mapping[str, Any]:
    """The fields of a file, of which nothing but shapes and dtypes may be looked at: it is mapped, and not read."""
    return load_record(path, mmap=True)[0]


def check_record(path: Path, record: Mapping[str, Any], widths: Mapping[str, int], vocab_size: int) -> Record:
    """The fields of ``record`` that training reads, each of them checked; see :func:`read_record`."""
    ids = plain_tensor(path, record, "input_ids")
    if ids.dtype != torch.int64 or ids.dim() != 1 or ids.numel() == 0:
        raise InputError(path, "input_ids", f"{ids.dtype} {tuple(ids.shape)}", "int64 [T], T >= 1")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise InputError(path, "input_ids", f"ids in [{int(ids.min())}, {int(ids.max())}]", f"[0, {vocab_size})")
    mask = plain_tensor(path, record, "loss_mask")
    if mask.shape != ids.shape:
        raise InputError(path, "loss_mask", f"shape {tuple(mask.shape)}", f"shape {tuple(ids.shape)} like input_ids")
    if mask.dtype not in (*FLOATS, *WHOLE):
        raise InputError(path, "loss_mask", mask.dtype, "bool, integers, or floats of 16 bits and more")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(path, "loss_mask", "values other than 0 and 1", "0 or 1")
    floats = {name: _floats(path, record, name, (ids.shape[0], width)) for name, width in widths.items()}
    check_rows(path, floats, ids)
    return {"input_ids": ids, "loss_mask": mask, **floats}


def check_rows(path: Path, states: Mapping[str, Tensor], ids: Tensor) -> None:
    """Refuse what no verifier computes: numbers that are none, a layer of one number alone, a state at two tokens.

    Two rows may be the same where tokens explain it: where the same token stands at both, after the same one.

    Args:
        path: the record.
        states: ``hidden_state`` [T, F] and ``target`` [T, h], those that there are.
        ids: [T] int64.

    Raises:
        InputError: names the field and the first such row.
    """
    size = min((value.shape[-1] for value in states.values()), default=1)
    for name, value in states.items():
        if not bool(torch.stack(value.aminmax()).isfinite().all()):  # in one pass: both are NaN where any number is
            raise InputError(path, name, "NaN or Inf", "finite values")
        flat = _flat(value.reshape(len(ids), -1, size))
        if flat is not None:
            row, layer = flat
            found = f"the same number, {float(value[row, layer * size])}, in all of row {row}'s layer {layer}"
            raise InputError(path, name, found, "the verifier's states")
        again = _repeated(value, ids)
        if again is not None:
            found = "row {} again as row {}, of another token".format(*again)
            raise InputError(path, name, found, "a state of its own for every token")


def _some(values: Tensor) -> Tensor:
    """A few of the numbers of every row: what is the same in all is the same in these, of which most rows differ."""
    return values[..., torch.linspace(0, values.shape[-1] - 1, SAMPLED).long()]


def _flat(states: Tensor) -> tuple[int, int] | None:
    """The row and the layer of ``states`` [T, layers, h] that is one number alone, if there is one."""
    few = _some(states)
    for row, layer in (few == few[..., :1]).all(-1).nonzero().tolist() if states.shape[-1] > 1 else ():
        if bool((states[row, layer] == states[row, layer, 0]).all()):
            return row, layer
    return None


def _repeated(states: Tensor, ids: Tensor) -> tuple[int, int] | None:
    """Two rows of ``states`` [T, F] with the same numbers at different tokens, if there are any."""
    sums, order = _some(states).float().sum(-1).sort(stable=True)
    ids = ids.to(states.device)
    before, same = torch.cat([ids[:1], ids[:-1]]), sums[1:] == sums[:-1]
    first, again = order[:-1][same], order[1:][same]
    unlike = (ids[first] != ids[again]) | (before[first] != before[again])
    pairs = zip(first[unlike].tolist(), again[unlike].tolist(), strict=True)
    return next(((one, other) for one, other in pairs if torch.equal(states[one], states[other])), None)


def plain_tensor(path: Path, record: Mapping[str, Any], name: str) -> Tensor:
    """Entry ``name`` of ``record``, without a history of gradients.

    Raises:
        InputError: no tensor, or one that is sparse, nested or on meta.
    """
    value = record.get(name)
    if not isinstance(value, Tensor):
        found = "missing" if value is None else type(value).__name__
        raise InputError(path, name, found, f"a tensor (fields present: {', '.join(map(str, record))})")
    if value.layout is not torch.strided or value.is_nested or value.is_meta:
        found = f"a sparse or nested tensor ({value.layout}), or one on meta"
        raise InputError(path, name, found, "a plain tensor, its numbers in memory one by one")
    return value.detach()


def _floats(path: Path, record: Mapping[str, Any], name: str, shape: tuple[int, int]) -> Tensor:
    value = plain_tensor(path, record, name)
    if value.dtype not in FLOATS or tuple(value.shape) != shape:
        expected = f"floating point {shape}, of 16 bits and more"
        raise InputError(path, name, f"{value.dtype} {tuple(value.shape)}", expected)
    return value
