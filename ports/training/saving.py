"""A draft and Adam's state to the files of a checkpoint and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel
from torch import Tensor, nn

from ports.errors import InputError
from ports.files import check_regular, read_json
from ports.training.checkpoint import CONFIG, FOLDER, WEIGHTS, write_directory
from ports.training.records import FLOATS, WHOLE
from ports.training.shards import sharded_like

MOMENTS = ("exp_avg", "exp_avg_sq")
NEVER_NEGATIVE = ("exp_avg_sq.", "step.")
LENT = frozenset({"embed_tokens.weight"})
"""What Speculators takes from the verifier where a checkpoint has none, as those that EAGLE's are converted to."""
ABSENT = "no such tensor"


def save_draft(draft: SpeculatorModel, directory: Path, extra_files: Sequence[Path] = ()) -> Path:
    """Save ``draft`` at ``directory``: config.json, model.safetensors in the parameters' dtype, ``extra_files`` beside.

    Raises:
        InputError: it could not be written; see :func:`ports.training.checkpoint.write_directory`.
    """
    return write_directory(directory, lambda folder: write_draft(draft, folder, extra_files))


def write_draft(
    draft: SpeculatorModel, folder: Path, extra_files: Sequence[Path] = (), weights: dict[str, Tensor] | None = None
) -> None:
    """The files of a Speculators checkpoint; ``weights`` where the draft's own are in shards."""
    draft.save_pretrained(folder, state_dict=saved_tensors(draft, weights))
    for file in extra_files:
        shutil.copyfile(file, folder / file.name)


def write_published(checkpoint: Path, folder: Path, dtype: torch.dtype) -> None:
    """What a server opens of ``checkpoint``: all but the state of its training, with floating tensors in ``dtype``.

    Raises:
        InputError: weights that :func:`read_weights` refuses, or no config.
    """
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in read_weights(checkpoint / WEIGHTS).items()
    }
    config = read_json(checkpoint / CONFIG, "config", "a Speculators config")
    named = "torch_dtype" if "torch_dtype" in config else "dtype"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(FOLDER, WEIGHTS))
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps({**config, named: str(dtype).removeprefix("torch.")}, indent=2) + "\n")


def saved_tensors(draft: SpeculatorModel, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a checkpoint holds of ``weights``, by default the draft's: what is frozen in 16 bits, where they are exact.

    That is the verifier's embedding. It cannot be left out: for an Eagle3 draft without it Speculators 0.9.0 takes what
    lies in memory, as transformers 5 makes room for a missing tensor, and looks for NaN in it.
    """
    ignored = draft._keys_to_ignore_on_save or ()
    trained = {name for name, value in draft.named_parameters() if value.requires_grad}
    held = {name: value for name, value in (weights or draft.state_dict()).items() if name not in ignored}
    return {name: value if name in trained else _in_halves(value) for name, value in held.items()}


def _in_halves(value: Tensor) -> Tensor:
    for half in (torch.bfloat16, torch.float16) if value.dtype is torch.float32 else ():
        if torch.equal(value.to(half).to(value.dtype), value):
            return value.to(half)
    return value


def size_of_checkpoint(draft: SpeculatorModel) -> int:
    """Bytes of its tensors: all that are saved of the draft, frozen ones too, and Adam's two moments in float32."""
    weights = sum(value.nbytes for value in saved_tensors(draft).values())
    return weights + sum(8 * value.numel() for value in draft.parameters() if value.requires_grad)


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
    weights = read_tensors(file, "resume", "a Speculators checkpoint's model.safetensors")
    for name, value in weights.items():
        if value.dtype not in (*FLOATS, *WHOLE):
            raise InputError(file, name, value.dtype, "floats of 16 bits and more, or integers of a vocabulary map")
    return weights


def read_tensors(file: Path, field: str = "tensors", expected: str = "a safetensors file") -> dict[str, Tensor]:
    """Everything in a safetensors file; InputError where it is none."""
    check_regular(file, field)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, field, str(error), expected) from error
    return tensors


def put_weights(
    draft: SpeculatorModel, file: Path, weights: dict[str, Tensor], lent: Collection[str] = frozenset()
) -> None:
    """Put what :func:`read_weights` read from ``file`` into ``draft``; raises as :func:`load_weights`.

    What is ``lent`` may be missing there: the draft has the verifier's.
    """
    own = draft.state_dict()
    ignored = {*(draft._keys_to_ignore_on_save or []), *lent}
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
    draft.load_state_dict(weights, strict=False)


def adam_state(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """``<moment>.<parameter>`` and ``step.<parameter>`` of what was stepped, in the dtypes and shards Adam has them."""
    return {
        f"{kind}.{name}": value.detach()
        for name, parameter in _trained(module).items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_adam_state(file: Path, stored: dict[str, Tensor], module: nn.Module, optimizer: Any) -> None:
    """Give ``optimizer`` the moments of ``stored``, exactly.

    Raises:
        InputError: a moment is missing or left over, or has another shape or dtype than its parameter's would.
    """
    trained = _trained(module)
    _check(file, stored, MOMENTS, trained)
    optimizer.state.clear()
    for name, parameter in trained.items():
        moments = {kind: sharded_like(parameter, stored[f"{kind}.{name}"]).clone() for kind in MOMENTS}
        optimizer.state[parameter] = {**moments, "step": stored[f"step.{name}"].clone().to(parameter.device)}


def zero_state(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """:func:`adam_state` under DeepSpeed's ZeRO 1 and 2, and ``weight.<parameter>`` [float32].

    There the weights are rounded from float32 ones, which belong to the state. Of both a process holds a piece of one
    flat tensor; DeepSpeed puts a parameter's together, and a checkpoint of its own, a pickle for every process, is not
    needed. Every process must ask.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    (step,) = {float(state["step"]) for state in optimizer.optimizer.optimizer.state.values()}
    stored = {}
    for name, parameter in _trained(module).items():
        stored[f"weight.{name}"] = safe_get_full_fp32_param(parameter)
        stored |= {f"{moment}.{name}": safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
        stored[f"step.{name}"] = torch.tensor(step)
    return stored


def load_zero_state(file: Path, stored: dict[str, Tensor], module: nn.Module, optimizer: Any) -> None:
    """Give every process its pieces, exactly.

    Raises:
        InputError: a tensor is missing or left over, or has another shape or dtype.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    trained = _trained(module)
    _check(file, stored, ("weight", *MOMENTS), trained, torch.float32)
    _make_room(optimizer.optimizer, stored[f"step.{next(iter(trained))}"])
    for name, parameter in trained.items():
        safe_set_full_fp32_param(parameter, stored[f"weight.{name}"].to(parameter.device))
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, stored[f"{moment}.{name}"].to(parameter.device), moment)


def _make_room(zero: Any, step: Tensor) -> None:
    """Adam's state of the flat tensors, which is otherwise made at the first step, and the parameters' places in it."""
    for group in zero.optimizer.param_groups:
        for flat in group["params"]:
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            zero.optimizer.state[flat] = {"step": step.clone(), **moments}
    zero._lazy_init_hp_params_optimizer_state()


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _check(
    file: Path, stored: dict[str, Tensor], kinds: Sequence[str], stepped: dict[str, nn.Parameter], master: Any = None
) -> None:
    """Refuse (InputError) other tensors than ``kinds`` and the step of each parameter, or values Adam never has.

    ``master`` is their dtype, where it is not the parameter's own.
    """
    expected = {
        f"{kind}.{name}": f"{master or value.dtype} {tuple(value.shape)}"
        for name, value in stepped.items()
        for kind in kinds
    }
    expected |= {f"step.{name}": f"{torch.float32} ()" for name in stepped}
    found = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in stored.items()}
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            raise InputError(file, name, found.get(name, ABSENT), expected.get(name, ABSENT))
    for name, value in stored.items():
        if not bool(value.isfinite().all()):
            raise InputError(file, name, "NaN or Inf", "finite values")
        if name.startswith(NEVER_NEGATIVE) and bool((value < 0).any()):
            raise InputError(file, name, f"{float(value.min())}", "no negative values")
