"""What a script is watched through: loop, losses, model, optimizer; every call goes through unchanged."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import FrameType, ModuleType
from typing import Any

import torch

from parity.prototypes.original.recorder import Recorder
from parity.prototypes.original.weights import Tensors
from parity.speed import flop_counter


class StepLimitError(Exception):
    """Raised inside the loop when the requested number of optimizer steps has been made."""


class StepClock:
    """Wall seconds, CPU seconds of all threads and tokens of every optimizer step, without loading its batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.tokens: list[int] = []
        self._reset()
        self._since = (0.0, 0.0)

    def start(self) -> None:
        """A micro-batch begins."""
        self._since = (time.monotonic(), time.process_time())

    def stop(self, tokens: int, complete: bool) -> None:
        """It has ended, and with ``complete`` the optimizer step as well."""
        self._wall += time.monotonic() - self._since[0]
        self._cpu += time.process_time() - self._since[1]
        self._tokens += tokens
        if complete:
            self.seconds.append(self._wall)
            self.cpu_seconds.append(self._cpu)
            self.tokens.append(self._tokens)
            self._reset()

    def _reset(self) -> None:
        self._wall, self._cpu, self._tokens = 0.0, 0.0, 0


class FirstStepFlops:
    """Matrix-product FLOPs of the first optimizer step, forward and backward."""

    def __init__(self, wanted: bool) -> None:
        self._counter: Any = flop_counter() if wanted else None
        self._active = False
        self.total: int | None = None

    def start(self) -> None:
        """A micro-batch begins."""
        if self._counter is not None and self.total is None:
            self._counter.__enter__()
            self._active = True

    def stop(self, complete: bool) -> None:
        """It has ended, and with ``complete`` the optimizer step as well."""
        if self._counter is None or not self._active:
            return
        self._counter.__exit__(None, None, None)
        self._active = False
        if complete:
            self.total = self._counter.get_total_flops()


class LoopWatch:
    """Replaces ``tqdm`` in the script; iterating yields the loader's batches unchanged."""

    def __init__(self, listener: Recorder | None, limit: int | None, count_flops: bool) -> None:
        self.clock = StepClock()
        self.flops = FirstStepFlops(count_flops)
        self.accelerator: Any = None
        self._listener = listener
        self._limit = limit
        self._epochs = 0

    def __call__(self, loader: Iterable[dict[str, torch.Tensor]], **_: Any) -> Iterator[dict[str, torch.Tensor]]:
        """One pass; nothing happens before the first batch is asked for, since the scripts also build a dead bar."""
        return self._iterate(loader)

    def _iterate(self, loader: Iterable[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        epoch, self._epochs = self._epochs, self._epochs + 1
        for batch in loader:
            tokens = int(batch["attention_mask"].sum())
            self._begin(epoch, batch)
            yield batch
            self._end(tokens, sys._getframe(1) if self._listener is not None else None)

    def _begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        if self._listener is not None:
            self._listener.begin(epoch, batch)
        self.flops.start()
        self.clock.start()

    def _end(self, tokens: int, caller: FrameType | None) -> None:
        synced = bool(self.accelerator.sync_gradients)
        self.clock.stop(tokens, synced)
        self.flops.stop(synced)
        if self._listener is not None and caller is not None:
            self._listener.end(caller.f_locals, synced)
        if self._limit is not None and len(self.clock.seconds) >= self._limit:
            raise StepLimitError


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
