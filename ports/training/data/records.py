"""Read sample files: the prototypes' ``*.ckpt`` and our ``*.safetensors``.

A record holds ``input_ids`` [T] int64, ``loss_mask`` [T] 0/1, ``hidden_state`` [T, F] and, for Eagle3, ``target``
[T, h]. Records come from outside: a torch pickle is loaded with ``weights_only=True``, safetensors are mapped into
memory, and every field is checked before it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ports.errors import InputError
from ports.files import check_regular
from ports.training.data.record_info import SUFFIX, RecordInfo, check_same, parse_info

Record = dict[str, Tensor]
SUFFIXES = (".ckpt", SUFFIX)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CALLED = re.compile(r"GLOBAL (\S+)")


def list_records(directory: Path, field: str = "tmpdir") -> list[Path]:
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
        _check_name(directory, file)
    return files


def _check_name(directory: Path, file: Path) -> None:
    """Other bytes in a name can be opened, but neither printed nor logged."""
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise InputError(directory, "tmpdir", f"the record {os.fsencode(file.name)!r}", "names in UTF-8") from error


def recorded_info(files: Iterable[Path]) -> RecordInfo | None:
    """What the first safetensors record says about all of them; the prototypes' say nothing.

    Raises:
        InputError: it cannot be read.
    """
    for file in files:
        if file.suffix == SUFFIX:
            check_regular(file, "file")
            return _load_safetensors(file)[1]
    return None


def natural_key(path: Path) -> list[list[tuple[int, int, str]]]:
    """Sort key that compares runs of digits as numbers, folder by folder."""
    return [
        [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece]
        for part in path.parts
    ]


def read_record(path: Path, widths: Mapping[str, int], vocab_size: int, like: RecordInfo | None = None) -> Record:
    """One checked record.

    Args:
        path: the file.
        widths: expected last dimension of each floating field, e.g. ``{"hidden_state": 3 * h, "target": h}``.
        vocab_size: ids must lie in ``[0, vocab_size)``.
        like: a safetensors record must be of this one's kind.

    Raises:
        InputError: unreadable file, missing field, wrong shape, dtype or value, or features of another kind.
    """
    check_regular(path, "file")
    record, info = (_load(path), None) if path.suffix != SUFFIX else _load_safetensors(path)
    if info is not None and like is not None:
        check_same(path, info, like, features=bool(widths))
    return check_record(path, record, widths, vocab_size)


def check_record(path: Path, record: Mapping[str, Any], widths: Mapping[str, int], vocab_size: int) -> Record:
    """The fields of ``record`` that training reads, each of them checked; see :func:`read_record`."""
    ids = plain_tensor(path, record, "input_ids")
    _check_ids(path, ids, vocab_size)
    mask = plain_tensor(path, record, "loss_mask")
    if mask.shape != ids.shape:
        raise InputError(path, "loss_mask", f"shape {tuple(mask.shape)}", f"shape {tuple(ids.shape)} like input_ids")
    if mask.dtype not in (*FLOATS, *WHOLE):
        raise InputError(path, "loss_mask", mask.dtype, "bool, integers, or floats of 16 bits and more")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(path, "loss_mask", "values other than 0 and 1", "0 or 1")
    floats = {name: _floats(path, record, name, (ids.shape[0], width)) for name, width in widths.items()}
    return {"input_ids": ids, "loss_mask": mask, **floats}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes run into
        raise InputError(path, "file", _reason(error), "a torch file of plain tensors") from error
    if not isinstance(record, Mapping):
        raise InputError(path, "file", type(record).__name__, "a dict of tensors")
    return record


def _reason(error: Exception) -> str:
    """Without torch's advice to load what it refuses."""
    words = str(error).strip()
    if isinstance(error, OSError) or not re.search("weights.only", words, re.IGNORECASE):
        return words.split("\n")[0] or type(error).__name__
    called = CALLED.search(words)
    return f"a pickle that calls {called[1][:80]}" if called else "a pickle of more than tensors"


def _load_safetensors(path: Path) -> tuple[Mapping[str, Any], RecordInfo]:
    """The tensors are views of the mapped file."""
    try:
        with safe_open(path, "pt") as file:
            info = parse_info(path, file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118  (no iteration)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, "file", str(error).split("\n")[0], "a whole safetensors file") from error


def plain_tensor(path: Path, record: Mapping[str, Any], name: str) -> Tensor:
    """Entry ``name`` of ``record``, without a history of gradients.

    Raises:
        InputError: no tensor, or one that is sparse, nested or on meta.
    """
    value = record.get(name)
    if not isinstance(value, Tensor):
        found = "missing" if value is None else type(value).__name__
        raise InputError(path, name, found, f"a tensor (fields present: {', '.join(map(str, record))})")
    kinds = {
        str(value.layout): value.layout is not torch.strided,
        "a nested tensor": value.is_nested,
        "a tensor on meta": value.is_meta,
    }
    odd = [kind for kind, holds in kinds.items() if holds]
    if odd:
        raise InputError(path, name, odd[0], "a plain tensor, its numbers in memory one by one")
    return value.detach()


def _check_ids(path: Path, ids: Tensor, vocab_size: int) -> None:
    if ids.dtype != torch.int64 or ids.dim() != 1 or ids.numel() == 0:
        raise InputError(path, "input_ids", f"{ids.dtype} {tuple(ids.shape)}", "int64 [T], T >= 1")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise InputError(path, "input_ids", f"ids in [{int(ids.min())}, {int(ids.max())}]", f"[0, {vocab_size})")


def _floats(path: Path, record: Mapping[str, Any], name: str, shape: tuple[int, int]) -> Tensor:
    value = plain_tensor(path, record, name)
    if value.dtype not in FLOATS or tuple(value.shape) != shape:
        expected = f"floating point {shape}, of 16 bits and more"
        raise InputError(path, name, f"{value.dtype} {tuple(value.shape)}", expected)
    if not bool(torch.isfinite(value).all()):
        raise InputError(path, name, "NaN or Inf", "finite values")
    return value
