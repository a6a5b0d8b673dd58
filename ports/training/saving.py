"""Write a draft as a Speculators checkpoint directory, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from speculators import SpeculatorModel
from torch import Tensor

from ports.errors import InputError
from ports.files import check_regular
from ports.training.checkpoint.atomic import write_directory
from ports.training.data.records import FLOATS, WHOLE
from ports.training.shards import sharded_like, whole

WEIGHTS = "model.safetensors"


def save_draft(draft: SpeculatorModel, directory: Path, extra_files: Sequence[Path] = ()) -> Path:
    """Save ``draft`` at ``directory``: config.json, model.safetensors in the parameters' dtype, ``extra_files`` beside.

    Raises:
        InputError: it could not be written; see :func:`ports.training.checkpoint.atomic.write_directory`.
    """
    return write_directory(directory, lambda folder: write_draft(draft, folder, extra_files))


def write_draft(
    draft: SpeculatorModel, folder: Path, extra_files: Sequence[Path] = (), weights: dict[str, Tensor] | None = None
) -> None:
    """The files of a Speculators checkpoint; ``weights`` where the draft's own are in shards."""
    draft.save_pretrained(folder, state_dict=weights)
    for file in extra_files:
        shutil.copyfile(file, folder / file.name)


def gather_weights(draft: Any, keep: bool) -> dict[str, Tensor]:
    """The draft's state with every tensor whole, on the CPU; every process must ask, those that ``keep`` get it."""
    gathered = ((name, whole(value)) for name, value in draft.state_dict().items())
    return {name: value.cpu() for name, value in gathered if keep}


def load_weights(draft: SpeculatorModel, directory: Path) -> None:
    """Load a Speculators checkpoint's tensors into ``draft``; every tensor must fit and none may be missing.

    Raises:
        InputError: a file that :func:`read_weights` refuses, other tensors, NaN or Inf in one, or another
            vocabulary map than the draft's, whose target distribution would not be the checkpoint's.
    """
    file = directory / WEIGHTS
    put_weights(draft, file, read_weights(file))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file.

    Raises:
        InputError: no such file, not safetensors (a pickle under that name is never executed), or no numbers that a
            draft is made of.
    """
    check_regular(file, "ckpt_path")
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, "ckpt_path", str(error), "a Speculators checkpoint's model.safetensors") from error
    for name, value in weights.items():
        if value.dtype not in (*FLOATS, *WHOLE):
            raise InputError(file, name, value.dtype, "floats of 16 bits and more, or integers of a vocabulary map")
    return weights


def put_weights(draft: SpeculatorModel, file: Path, weights: dict[str, Tensor]) -> None:
    """Put what :func:`read_weights` read from ``file`` into ``draft``; raises as :func:`load_weights`."""
    own = draft.state_dict()
    ignored = set(draft._keys_to_ignore_on_save or [])
    missing, extra = sorted(set(own) - set(weights) - ignored), sorted(set(weights) - set(own))
    if missing or extra:
        raise InputError(file, "tensors", f"missing {missing}, unexpected {extra}", "exactly the draft's tensors")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise InputError(file, name, f"shape {tuple(value.shape)}", f"shape {tuple(own[name].shape)}")
        if not bool(value.isfinite().all()):
            raise InputError(file, name, "NaN or Inf", "finite values")
        if name in ("t2d", "d2t") and not torch.equal(value, own[name]):
            raise InputError(file, name, "another vocabulary map", "the one of the t2d and d2t files")
    draft.load_state_dict({name: sharded_like(own[name], value) for name, value in weights.items()}, strict=False)
