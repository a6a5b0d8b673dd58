"""Adam's state under DeepSpeed's ZeRO 1 and 2, by parameter name and whole, as :mod:`.adam` has it.

There the weights are rounded from float32 ones, which belong to the state. Of both a process holds a piece of one flat
tensor; DeepSpeed puts a parameter's together, and a checkpoint of its own, a pickle for every process, is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ports.training.checkpoint.adam import check_names, check_tensor

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_state(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """``weight``, ``exp_avg``, ``exp_avg_sq`` [float32] and ``step`` of what trains; every process must ask."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    (step,) = {float(state["step"]) for state in optimizer.optimizer.optimizer.state.values()}
    stored = {}
    for name, parameter in _trained(module).items():
        stored[f"{WEIGHT}.{name}"] = safe_get_full_fp32_param(parameter)
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
    check_names(file, stored, {f"{kind}.{name}" for name in trained for kind in (WEIGHT, *MOMENTS, "step")})
    for name, parameter in trained.items():
        for kind in (WEIGHT, *MOMENTS):
            check_tensor(file, f"{kind}.{name}", stored[f"{kind}.{name}"], parameter.shape, torch.float32)
        check_tensor(file, f"step.{name}", stored[f"step.{name}"], torch.Size(), torch.float32)
    _make_room(optimizer.optimizer, stored[f"step.{next(iter(trained))}"])
    for name, parameter in trained.items():
        safe_set_full_fp32_param(parameter, stored[f"{WEIGHT}.{name}"].to(parameter.device))
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
