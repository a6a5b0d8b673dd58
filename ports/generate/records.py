"""Write records: deterministic bytes, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ports.errors import InputError
from ports.training.checkpoint import write_file
from ports.training.data.record_info import SUFFIX, RecordInfo, parse_info

HEADER_BYTES = 640
"""What a record's header takes, about."""


ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def record_file(folder: Path, index: int) -> Path:
    """``data_<index>.safetensors``, as the prototypes number theirs."""
    return folder / f"data_{index}{SUFFIX}"


def write_record(file: Path, tensors: Mapping[str, Tensor], info: RecordInfo) -> None:
    """One record at ``file``.

    Raises:
        InputError: a feature that is NaN or Inf, or a disk that is full or broken.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            expected = f"finite values: {value.dtype} cannot hold what the verifier computes, see --dtype"
            raise InputError(file, name, "NaN or Inf", expected)
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_file(file, save(plain, info.as_metadata()))


def is_whole(file: Path, info: RecordInfo) -> bool:
    """Does ``file`` hold the record that ``info`` describes? Its header tells whether a byte is missing."""
    try:
        with safe_open(file, "pt") as record:
            return parse_info(file, record.metadata()) == info
    except (OSError, SafetensorError, InputError):
        return False


def record_bytes(length: int, features: int, target: int, item: int) -> int:
    """Size of a record of ``length`` tokens: ids and mask in int64, floats of ``item`` bytes."""
    return HEADER_BYTES + length * (16 + (features + target) * item)
