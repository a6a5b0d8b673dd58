"""Run one side and write down what it computed, as a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import keep_call, state_of, watch
from parity.environment import describe, deterministic
from parity.errors import InputError
from parity.kit.side import Batch, Side
from parity.kit.training import Training
from parity.names import NameMap
from parity.trace import Trace

STEPS = 5
"""Optimizer steps of a curve."""


def trace_side(
    side: Side,
    batches: Sequence[Batch],
    *,
    seed: int = 0,
    steps: int = STEPS,
    weights: Mapping[str, Tensor] | None = None,
) -> Trace:
    """Build a side, run ``steps`` optimizer steps over the batches and keep everything of the first.

    Args:
        side: what to run.
        batches: at least one; they come round when there are more steps.
        seed: set before the module is built, and again before the first step.
        steps: of the curve, at least one.
        weights: to start from, by the side's own names; what the side lacks is ignored, the comparison finds it.

    Raises:
        InputError: no batch, or no step.
    """
    _check(batches, steps)
    with deterministic(seed):
        module = start(side, weights)
        trace = Trace(side.name or "side", type(module).__name__, dtype_of(module))
        trace.trained = tuple(name for name, value in module.named_parameters() if value.requires_grad)
        trace.frozen = tuple(name for name, value in module.named_parameters() if not value.requires_grad)
        _keep(trace, "init", state_of(module))
        set_seed(seed)
        training = Training(side, module)
        _first_step(trace, training, batches[0])
        trace.curve += training.run(batches, steps)
        _keep(trace, "final", state_of(module))
        trace.configuration = {"seed": seed, "steps": steps, "optimizer": type(training.optimizer).__name__}
        trace.environment = describe(seed)
    return trace


def start(side: Side, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A fresh module, with the weights that fit it."""
    module = side.build()
    if weights is not None:
        give(module, weights)
    return module


@torch.no_grad()
def give(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy those weights that the module has in the same shape."""
    own: dict[str, Tensor] = {**module.state_dict(), **dict(module.named_parameters())}
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)


def original_weights(side: Side, names: NameMap, seed: int) -> dict[str, Tensor]:
    """What the original starts from, by the port's names."""
    with deterministic(seed):
        return names.parameters(state_of(side.build()))


def _first_step(trace: Trace, training: Training, batch: Batch) -> None:
    with watch(training.module) as calls:
        loss = training.loss(batch)
    loss.backward()
    trace.calls = tuple(call.key for call in calls)
    for call in calls:
        keep_call(trace, call)
    grads = training.gradients()
    _keep(trace, "mb0.grad", grads)
    trace.tensors["mb0.loss"] = loss.detach().reshape(1).clone()
    trace.curve.append(training.step(loss.detach()))
    trace.tensors["mb0.grad_norm"] = torch.tensor([trace.curve[0].grad_norm], dtype=torch.float64)
    _keep(trace, "after", state_of(training.module))


def _keep(trace: Trace, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    trace.tensors.update({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})


def dtype_of(module: nn.Module) -> str:
    """The widest floating dtype of the parameters, in torch's words without the prefix."""
    dtypes = {value.dtype for value in module.parameters() if value.is_floating_point()}
    widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32)
    return str(widest).removeprefix("torch.")


def _check(batches: Sequence[Batch], steps: int) -> None:
    if not batches:
        raise InputError("comparison", "batches", "none", "at least one batch")
    if steps < 1:
        raise InputError("comparison", "steps", steps, "at least 1")
