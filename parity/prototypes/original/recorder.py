"""Listens to a script's loop, losses, model and optimizer; every call goes through unchanged."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity.speed import flop_counter
from parity.step import global_norm


class StepLimitError(Exception):
    """Raised inside the loop when the requested number of optimizer steps has been made."""


class LoopWatch:
    """Replaces ``tqdm`` in the script; iterating yields the loader's batches unchanged.

    Takes wall seconds and CPU seconds of all threads of every optimizer step, without loading its batches; where
    nothing is recorded, it counts the matrix-product FLOPs of the first step, forward and backward.
    """

    def __init__(self, recorder: Recorder | None = None, limit: int | None = None) -> None:
        self.recorder, self.limit = recorder, limit
        self.accelerator: Any = None
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.first_step_flops = 0
        self._counter: Any = None if recorder else flop_counter()
        self._epochs, self._spent = 0, np.zeros(2)

    def __call__(self, loader: Iterable[dict[str, Tensor]], **_: Any) -> Iterator[dict[str, Tensor]]:
        """One pass; nothing happens before the first batch is asked for, since the scripts also build a dead bar."""
        epoch, self._epochs = self._epochs, self._epochs + 1
        for batch in loader:
            if self.recorder is not None:
                self.recorder.begin(epoch, batch)
            counting = self._counter if not self.seconds else None
            with counting or contextlib.nullcontext():
                since = _clocks()
                yield batch
                self._spent += _clocks() - since
            self._end(bool(self.accelerator.sync_gradients), sys._getframe(1).f_locals)

    def _end(self, synced: bool, names: dict[str, Any]) -> None:
        """A micro-batch has ended, and where gradients were ``synced`` the optimizer step as well."""
        if self._counter is not None and not self.seconds:
            self.first_step_flops += self._counter.get_total_flops()
        if synced:
            self.seconds.append(self._spent[0])
            self.cpu_seconds.append(self._spent[1])
            self._spent = np.zeros(2)
        if self.recorder is not None:
            self.recorder.end(names, synced)
        if len(self.seconds) == self.limit:
            raise StepLimitError


def _clocks() -> Any:
    """Wall and CPU seconds."""
    return np.array([time.monotonic(), time.process_time()])


def hooked(
    owner: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Let a function tell ``before`` what it is given, and ``after`` what it returned and was given."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapper(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given)
        result = inner(*given, **named)
        if after is not None:
            after(result, *given)
        return result

    setattr(owner, name, wrapper)


RESULTS = {"eagle3": ("logits", "kldiv_loss"), "hass": ("ploss", "topk_loss", "logits", "kldiv_loss")}
"""What ``compute_loss`` returns."""

TARGET_P = {"eagle3": 0, "hass": 1}
"""The place of the target distribution among its arguments."""


class Recorder:
    """One row per micro-batch, and every tensor of the first optimizer step, in the form of the recordings."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.rows: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.initial: dict[str, Tensor] = {}
        self.uniforms: list[Tensor] = []
        self.order: list[int] = []
        self.accelerator: Any = None
        self._row: dict[str, Any] = {}
        self._first_step = True

    def listen_to_script(self, script: ModuleType) -> None:
        """Losses, the order of samples and the noise drawn for them."""
        self.accelerator = script.accelerator
        hooked(script.torch, "rand_like", after=lambda drawn, *_: self.uniforms.append(drawn))
        hooked(script, "compute_loss", after=self._losses)
        hooked(script.CustomDataset, "__getitem__", lambda _self, index: self.order.append(int(index)))

    def listen_to_model(self, model: torch.nn.Module) -> None:
        """Where it starts, what goes in and what comes out."""
        self.initial = snapshot(model)
        model.register_forward_hook(self._forward)

    def listen_to_run(self, model: torch.nn.Module, optimizer: Any, scheduler: Any) -> None:
        """Clipping, and the steps of optimizer and scheduler, as ``accelerator.prepare`` returned them."""
        hooked(self.accelerator, "clip_grad_norm_", functools.partial(self._clip, "norm", model), self._clipped)
        hooked(self.accelerator, "clip_grad_value_", functools.partial(self._clip, "value", model))
        hooked(optimizer, "step", lambda *_: self._note("lr_used", optimizer), lambda *_: self._stepped(model))
        hooked(scheduler, "step", after=lambda *_: self._note("lr_after", optimizer))

    def begin(self, epoch: int, batch: dict[str, Tensor]) -> None:
        """A micro-batch enters the loop."""
        self._row = {"mb": len(self.rows), "epoch": epoch, "kldiv_steps": []}
        for name, value in batch.items():
            self._keep(f"batch.{name}", value)

    def _forward(self, _: torch.nn.Module, inputs: tuple[Any, ...], predict: Tensor) -> None:
        """The draft model turned the hidden states that it was given first into ``predict``."""
        step = len(self._row["kldiv_steps"])
        if step == 0:
            self._keep("step0.hidden_in", inputs[0])
        self._keep(f"step{step}.predict", predict)

    def _losses(self, result: tuple[Tensor, ...], *given: Any) -> None:
        """The losses of one step, with its logits and the target distribution."""
        step = len(self._row["kldiv_steps"])
        values = dict(zip(RESULTS[self.algorithm], result))
        self._row["kldiv_steps"].append(values["kldiv_loss"].item())
        for name, value in values.items():
            self._keep(f"step{step}.{name}", value if name == "logits" else value.reshape(1))
        if step == 0:
            self._keep("target_p", given[TARGET_P[self.algorithm]])

    def _clip(self, kind: str, model: torch.nn.Module, _parameters: Any, limit: float) -> None:
        """The gradients are about to be clipped, or have been used already by DeepSpeed."""
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        self._row["grad_norm_after_backward"] = [global_norm(gradients.values())]
        self._row["clip"] = {"kind": kind, "max": limit}
        if self._first_step and self.accelerator.sync_gradients:
            for name, value in gradients.items():
                self._keep(f"grad.{name}", value)

    def _clipped(self, norm: Any, *_: Any) -> None:
        self._row["clip"]["returned"] = float(norm)

    def _note(self, name: str, optimizer: Any) -> None:
        self._row[name] = optimizer.param_groups[0]["lr"]

    def _stepped(self, model: torch.nn.Module) -> None:
        if self._first_step and self.accelerator.sync_gradients:
            self.tensors |= {f"after.{name}": value for name, value in snapshot(model).items()}

    def end(self, names: dict[str, Any], synced: bool) -> None:
        """The micro-batch is done; ``names`` are the local names of the script's ``main``."""
        row, count = self._row, float(names["ct"])
        row |= {"loss": names["loss"].item(), "cc": float(names["cc"]), "ct": count, "synced": synced}
        row["topk_correct"] = [value.item() for value in names["topkacc"]]
        row["logdict"] = dict(names["logdict"]) if count else None
        dtype = torch.float64 if self.algorithm == "hass" else torch.float32
        norm = row["clip"].get("returned", row["grad_norm_after_backward"][-1])
        self._keep("loss", torch.tensor([row["loss"]], dtype=dtype))
        self._keep("grad_norm", torch.tensor([norm], dtype=dtype))
        self.rows.append(row)
        self._first_step = self._first_step and not synced

    def _keep(self, name: str, value: Tensor) -> None:
        if self._first_step:
            self.tensors[f"mb{self._row['mb']}.{name}"] = value.detach().clone()

    def write(self, folder: Path, model: torch.nn.Module, given: Path) -> None:
        """The recording's files but for ``meta.json``; of the initial weights only what was not ``given`` by a file."""
        start = {f"init.{name}": value for name, value in self.initial.items()}
        kept = {name: start[name] for name in start.keys() - load_file(given).keys()}
        save_file({**kept, **self.tensors}, folder / "first_step.safetensors")
        save_file(snapshot(model), folder / "final.safetensors")
        if self.uniforms:
            draws = {f"u{index:04d}": value for index, value in enumerate(self.uniforms)}
            save_file(draws, folder / "noise_uniforms.safetensors")
        (folder / "trajectory.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}
