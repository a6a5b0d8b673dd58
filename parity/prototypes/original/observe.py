"""Wraps what the script calls, so that the recorder hears of it; every call goes through unchanged."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from parity.prototypes.original.recorder import Recorder
from parity.prototypes.original.weights import Tensors

WATCH_LINES = [
    "Accelerator.backward / clip_grad_* / optimizer.step / scheduler.step wrapped for recording",
    "main module's compute_loss and CustomDataset.__getitem__ wrapped for recording",
]


def watch_script(script: ModuleType, recorder: Recorder) -> None:
    """Losses and the order of samples."""
    _watch_losses(script, recorder)
    dataset = script.CustomDataset
    load = dataset.__getitem__

    def getitem(self: Any, index: int) -> Any:
        recorder.sample_indices.append(int(index))
        return load(self, index)

    dataset.__getitem__ = getitem


def _watch_losses(script: ModuleType, recorder: Recorder) -> None:
    inner = script.compute_loss
    read = _read_hass if recorder.algorithm == "hass" else _read_eagle3

    def compute_loss(*arguments: Any, **named: Any) -> Any:
        result = inner(*arguments, **named)
        recorder.losses(read(arguments, result))
        return result

    script.__dict__["compute_loss"] = compute_loss


def _read_eagle3(arguments: tuple[Any, ...], result: tuple[Any, ...]) -> Tensors:
    return {"target_p": arguments[0], "logits": result[0], "kldiv_loss": result[1]}


def _read_hass(arguments: tuple[Any, ...], result: tuple[Any, ...]) -> Tensors:
    ploss, topk_loss, logits, kldiv_loss = result
    return {
        "kldiv_loss": kldiv_loss,
        "ploss": ploss,
        "topk_loss": topk_loss,
        "target_p": arguments[1],
        "logits": logits,
    }


def watch_model(model: torch.nn.Module, recorder: Recorder) -> None:
    """What goes into the draft model and what comes out."""

    def hook(_module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        recorder.forward(inputs[0], output)

    model.register_forward_hook(hook)
    recorder.dtypes.watch_leaves(model)


def _watch_accelerator(accelerator: Any, model: torch.nn.Module, recorder: Recorder) -> None:
    backward = accelerator.backward

    def watched_backward(loss: torch.Tensor, **named: Any) -> None:
        backward(loss, **named)
        recorder.backward(loss, grad_norm(model))

    accelerator.backward = watched_backward
    accelerator.clip_grad_norm_ = _watch_clip(accelerator, accelerator.clip_grad_norm_, "norm", model, recorder)
    accelerator.clip_grad_value_ = _watch_clip(accelerator, accelerator.clip_grad_value_, "value", model, recorder)


def _watch_clip(accelerator: Any, inner: Any, kind: str, model: torch.nn.Module, recorder: Recorder) -> Any:
    def clip(parameters: Any, limit: float, *rest: Any) -> Any:
        gradients = {name: value.grad for name, value in model.named_parameters()}
        what = {"kind": kind, "max": limit} | (_clipped(gradients, limit) if kind == "value" else {})
        recorder.clip(what, gradients, bool(accelerator.sync_gradients))
        result = inner(parameters, limit, *rest)
        recorder.clip_returned(result)
        return result

    return clip


def _clipped(gradients: dict[str, torch.Tensor | None], limit: float) -> dict[str, Any]:
    present = [value.abs() for value in gradients.values() if value is not None]
    return {
        "elements_clipped": sum(int((value > limit).sum()) for value in present),
        "max_abs_grad": max((value.max().item() for value in present), default=0.0),
    }


def grad_norm(model: torch.nn.Module) -> float:
    """Global gradient norm, summed in float64."""
    squares = [value.grad.double().pow(2).sum().item() for value in model.parameters() if value.grad is not None]
    return float(sum(squares) ** 0.5)


def watch_prepared(prepared: tuple[Any, ...], accelerator: Any, model: torch.nn.Module, recorder: Recorder) -> None:
    """The accelerator, and what its ``prepare`` returned: optimizer, scheduler, a head beside the draft model."""
    optimizers: Any = importlib.import_module("accelerate.optimizer")
    schedulers: Any = importlib.import_module("accelerate.scheduler")
    optimizer = next(item for item in prepared if isinstance(item, optimizers.AcceleratedOptimizer))
    scheduler = next(item for item in prepared if isinstance(item, schedulers.AcceleratedScheduler))
    _watch_accelerator(accelerator, model, recorder)
    _watch_optimizer(optimizer, accelerator, model, recorder)
    _watch_scheduler(scheduler, optimizer, recorder)
    for head in prepared[1:]:
        if isinstance(head, torch.nn.Module):
            recorder.dtypes.watch_output("head_out", head)


def _watch_optimizer(optimizer: Any, accelerator: Any, model: torch.nn.Module, recorder: Recorder) -> None:
    step = optimizer.step

    def watched_step(*arguments: Any) -> None:
        synced = bool(accelerator.sync_gradients)
        recorder.before_step(optimizer.param_groups[0]["lr"], synced)
        step(*arguments)
        recorder.after_step(model, synced)

    optimizer.step = watched_step


def _watch_scheduler(scheduler: Any, optimizer: Any, recorder: Recorder) -> None:
    step = scheduler.step

    def watched_step(*arguments: Any) -> None:
        step(*arguments)
        recorder.after_scheduler(optimizer.param_groups[0]["lr"])

    scheduler.step = watched_step
