"""Adam's state by parameter name, in the dtypes it has: moments in float32 and the step counts beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ports.errors import InputError
from ports.training.shards import sharded_like, whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
NEVER_NEGATIVE = ("exp_avg_sq.", "step.")


def adam_state(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """``<moment>.<parameter>`` of everything that was stepped, whole: every process must ask where they are sharded."""
    return {
        f"{moment}.{name}": whole(optimizer.state[parameter][moment].detach())
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
        for moment in optimizer.state[parameter]
    }


def load_adam_state(file: Path, stored: dict[str, Tensor], module: nn.Module, optimizer: Any) -> None:
    """Give ``optimizer`` the moments of ``stored``, exactly; a parameter that never had a gradient has none.

    Raises:
        InputError: a moment is missing or left over, or has another shape or dtype than its parameter's would.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    named = {name: value for name, value in trained.items() if any(f"{m}.{name}" in stored for m in MOMENTS)}
    check_names(file, stored, {f"{moment}.{name}" for name in named for moment in MOMENTS})
    optimizer.state.clear()
    for name, parameter in named.items():
        optimizer.state[parameter] = _moments(file, stored, name, parameter)


def _moments(file: Path, stored: dict[str, Tensor], name: str, parameter: Tensor) -> dict[str, Tensor]:
    state = {moment: stored[f"{moment}.{name}"] for moment in MOMENTS}
    for moment, value in state.items():
        wanted = torch.Size() if moment == "step" else parameter.shape
        dtype = torch.float32 if moment == "step" else parameter.dtype
        check_tensor(file, f"{moment}.{name}", value, wanted, dtype)
    placed = {moment: sharded_like(parameter, value).clone() for moment, value in state.items() if moment != "step"}
    return {**placed, "step": state["step"].clone().to(parameter.device)}


def check_names(file: Path, stored: dict[str, Tensor], expected: set[str]) -> None:
    """Refuse (InputError) a state with other tensors than ``expected``."""
    if set(stored) != expected:
        missing, extra = sorted(expected - set(stored)), sorted(set(stored) - expected)
        raise InputError(file, "tensors", f"missing {missing[:3]}, unexpected {extra[:3]}", "one set per parameter")


def check_tensor(file: Path, name: str, value: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Refuse (InputError) a tensor of another shape or dtype, or with numbers that Adam never arrives at."""
    if value.shape != shape or value.dtype != dtype:
        raise InputError(file, name, f"{value.dtype} {tuple(value.shape)}", f"{dtype} {tuple(shape)}")
    if not bool(value.isfinite().all()):
        raise InputError(file, name, "NaN or Inf", "finite values")
    if name.startswith(NEVER_NEGATIVE) and bool((value < 0).any()):
        raise InputError(file, name, f"{float(value.min())}", "no negative values")
