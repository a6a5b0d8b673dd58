"""The parameters a run starts from, and the verifier tensors they go with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from parity.errors import InputError

Tensors = dict[str, torch.Tensor]
VERIFIER_NAMES = {
    "verifier.embed_tokens.weight": "model.embed_tokens.weight",
    "verifier.lm_head.weight": "lm_head.weight",
}
_MAY_BE_KEPT = {"embed_tokens.weight", "lm_head.weight"}


def overwrite(model: torch.nn.Module, file: Path) -> None:
    """Copy ``init.<name>`` over each parameter; only the embedding and the head may be absent from the file."""
    stored = {name[5:]: value for name, value in load_file(file).items() if name.startswith("init.")}
    parameters = dict(model.named_parameters())
    _check_names(file, stored, parameters)
    with torch.no_grad():
        for name, value in stored.items():
            _check_shape(file, name, value, parameters[name])
            parameters[name].copy_(value)


def _check_names(file: Path, stored: Tensors, parameters: dict[str, torch.nn.Parameter]) -> None:
    missing = sorted(set(parameters) - set(stored) - _MAY_BE_KEPT)
    unknown = sorted(set(stored) - set(parameters))
    if missing or unknown:
        raise InputError(file, "init.*", f"unknown {unknown}, missing {missing}", "the draft's parameters")


def _check_shape(file: Path, name: str, value: torch.Tensor, parameter: torch.Tensor) -> None:
    if value.shape != parameter.shape:
        raise InputError(file, f"init.{name}", tuple(value.shape), tuple(parameter.shape))


def snapshot(model: torch.nn.Module) -> Tensors:
    """A copy of every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def read_verifier(folder: Path) -> Tensors:
    """The verifier's embedding and head in float32."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise InputError(index, "file", "missing", "it: the prototypes read the verifier through it")
    where = json.loads(index.read_text())["weight_map"]
    return {name: _read_tensor(folder / where[key], key).float() for name, key in VERIFIER_NAMES.items()}


def _read_tensor(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(key)
    return tensor


def read_vocabulary(fixture: Path) -> Tensors:
    """``t2d`` and ``d2t`` where the fixture has them."""
    files = {name: fixture / f"{name}.npy" for name in ("t2d", "d2t")}
    return {name: torch.from_numpy(np.load(file)) for name, file in files.items() if file.exists()}


def split_aliases(tensors: Tensors, known: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Leave out an embedding that equals a tensor stored elsewhere, and say where it is."""
    aliases = {
        name: found
        for name, value in tensors.items()
        if name.endswith("embed_tokens.weight") and (found := _find_equal(value, known)) is not None
    }
    return {name: value for name, value in tensors.items() if name not in aliases}, aliases


def _find_equal(value: torch.Tensor, known: Tensors) -> str | None:
    for name, other in known.items():
        if name.endswith("embed_tokens.weight") and same(value, other):
            return name
    return None


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every value."""
    return one.dtype == other.dtype and torch.equal(one, other)


def save_initial(folder: Path, tensors: Tensors, name: str) -> None:
    """Write the starting point beside the case folder, where cases that start from the same weights share it.

    Other weights that lie there under this name stay; then the file goes into the case folder.
    """
    shared = folder.parent / name
    if shared.exists() and _holds(shared, tensors):
        return
    file = folder / name if shared.exists() else shared
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)


def _holds(file: Path, tensors: Tensors) -> bool:
    stored = load_file(file)
    return stored.keys() == tensors.keys() and all(same(stored[name], value) for name, value in tensors.items())
