"""torch.compile where it pays: the elementwise work of a layer's MLP, which is one pass over memory instead of four."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from ports.errors import InputError

COMPILERS = ("g++", "c++", "clang++")


def compile_mlps(draft: Any, backend: str = "inductor") -> None:
    """Compile the MLP of every layer of ``draft`` in place, for any length; names in checkpoints stay.

    Raises:
        InputError: there is no C++ compiler and no GPU, whose Triton needs none.
    """
    if backend == "inductor" and not torch.cuda.is_available() and not any(map(shutil.which, COMPILERS)):
        raise InputError("command line", "--compile", "no C++ compiler", f"one of {', '.join(COMPILERS)} on the path")
    for layer in draft.layers:
        layer.mlp.compile(backend=backend, dynamic=True)
