"""Write a draft as a Speculators checkpoint directory, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.errors import InputError


def save_draft(draft: SpeculatorModel, directory: Path, extra_files: Sequence[Path] = ()) -> Path:
    """Save ``draft`` at ``directory``: config.json, model.safetensors in the parameters' dtype, ``extra_files`` beside.

    Everything is written into a hidden folder next to the target, synced and renamed; an older directory of that name
    is replaced only then, and put back if the renaming fails.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft_folder = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(draft_folder, ignore_errors=True)
    try:
        draft.save_pretrained(draft_folder)
        for file in extra_files:
            shutil.copyfile(file, draft_folder / file.name)
        _sync(draft_folder)
        _replace(draft_folder, directory)
    finally:
        shutil.rmtree(draft_folder, ignore_errors=True)
    return directory


def _replace(new: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
    try:
        os.rename(new, directory)
    except OSError:
        if old.exists():
            os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_weights(draft: SpeculatorModel, directory: Path) -> None:
    """Load a Speculators checkpoint's tensors into ``draft``; every tensor must fit and none may be missing.

    Raises:
        InputError: no such file, not safetensors (a pickle under that name is never executed), other tensors, or
            another vocabulary map than the draft's, whose target distribution would not be the checkpoint's.
    """
    file = directory / "model.safetensors"
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, "ckpt_path", str(error), "a Speculators checkpoint's model.safetensors") from error
    own = draft.state_dict()
    ignored = set(draft._keys_to_ignore_on_save or [])
    missing, extra = sorted(set(own) - set(weights) - ignored), sorted(set(weights) - set(own))
    if missing or extra:
        raise InputError(file, "tensors", f"missing {missing}, unexpected {extra}", "exactly the draft's tensors")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise InputError(file, name, f"shape {tuple(value.shape)}", f"shape {tuple(own[name].shape)}")
        if name in ("t2d", "d2t") and not torch.equal(value, own[name]):
            raise InputError(file, name, "another vocabulary map", "the one of the t2d and d2t files")
    draft.load_state_dict(weights, strict=False)
