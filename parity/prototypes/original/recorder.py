"""Collects what a run computes, with dtypes and what DeepSpeed holds, and writes the folder of a recording."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

from parity.prototypes.original.weights import Tensors, snapshot

_ATTENTION = "eager_attention_forward_train"


class DtypeLog:
    """Keeps the first dtype seen under each name, until closed."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self._handles: list[Any] = []
        self._open = True

    def note(self, name: str, value: Any) -> None:
        """Remember the dtype of ``value`` under ``name``, unless one is known; what is no tensor is passed over."""
        if self._open and isinstance(value, torch.Tensor):
            self.seen.setdefault(name, str(value.dtype))

    def watch_leaves(self, model: torch.nn.Module) -> None:
        """Note input and output of every module without children."""
        for name, module in model.named_modules():
            if not list(module.children()):
                self._handles.append(module.register_forward_hook(self._leaf_hook(name)))

    def watch_output(self, name: str, module: torch.nn.Module) -> None:
        """Note what a module returns under ``name``."""
        self._handles.append(module.register_forward_hook(lambda _module, _inputs, output: self.note(name, output)))

    def _leaf_hook(self, name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.note(f"{name}.in", inputs[0] if inputs else None)
            self.note(f"{name}.out", output)

        return hook

    def watch_attention(self, layers: ModuleType) -> None:
        """Note what goes through the prototype's training attention."""
        inner = layers.__dict__[_ATTENTION]

        def attention(module: Any, query: Any, keys: Any, values: Any, mask: Any, **named: Any) -> Any:
            result = inner(module, query, keys, values, mask, **named)
            seen = {"query": query, "key": keys[0], "value": values[0], "mask": mask}
            seen |= {"out": result[0], "weights": result[1]} | ({"key_step1": keys[1]} if len(keys) > 1 else {})
            for name, value in seen.items():
                self.note(f"attention.{name}", value)
            return result

        layers.__dict__[_ATTENTION] = attention

    def close(self) -> None:
        """Stop listening and take every hook off."""
        self._open = False
        while self._handles:
            self._handles.pop().remove()


_EMBEDDING = "embed_tokens.weight"
_WEIGHT_DECAY = 0.01


def master_weights(engine: Any) -> torch.Tensor:
    """The flat float32 copy of every parameter, in the order of the module's parameters."""
    groups: list[torch.Tensor] = engine.optimizer.single_partition_of_fp32_groups
    return torch.cat([group.detach().reshape(-1) for group in groups]).clone()


def describe_zero2(engine: Any, embedding: torch.Tensor, rates: list[float]) -> dict[str, Any]:
    """The ``deepspeed`` entry of ``meta.json``; ``embedding`` is the initial one, ``rates`` the learning rates used."""
    groups: list[torch.Tensor] = engine.optimizer.single_partition_of_fp32_groups
    start = _offset(engine.module)
    final = master_weights(engine)[start : start + embedding.numel()]
    return {
        "optimizer": type(engine.optimizer).__name__,
        "base_optimizer": type(engine.optimizer.optimizer).__name__,
        "config": engine.config,
        "module_param_dtypes": sorted({str(value.dtype) for value in engine.module.parameters()}),
        "fp32_master": [f"{group.dtype}{tuple(group.shape)}" for group in groups],
        "embed_master_offset": start,
        "embed_master_norm_ratio": (final.double().norm() / embedding.double().norm()).item(),
        "weight_decay_product": math.prod(1 - rate * _WEIGHT_DECAY for rate in rates),
    }


def _offset(module: torch.nn.Module) -> int:
    start = 0
    for name, value in module.named_parameters():
        if name == _EMBEDDING:
            return start
        start += value.numel()
    raise LookupError(_EMBEDDING)


_LOSSES = {"kldiv_loss": "kldiv_steps", "ploss": "ploss_steps", "topk_loss": "topk_loss_steps"}


class Recorder:
    """One row per micro-batch, and every tensor of the first optimizer step.

    The wrappers of :mod:`parity.prototypes.original.watch` call the methods in the order in which the script works.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.rows: list[dict[str, Any]] = []
        self.tensors: Tensors = {}
        self.uniforms: list[torch.Tensor] = []
        self.sample_indices: list[int] = []
        self.dtypes = DtypeLog()
        self.without_grad: list[str] = []
        self.optimizer_steps = 0
        self.first_micro_batches: list[int] = []
        self._row: dict[str, Any] = {}
        self._forwards = 0

    @property
    def in_first_step(self) -> bool:
        """Until the optimizer has moved the parameters once, every tensor is kept."""
        return self.optimizer_steps == 0

    def begin(self, epoch: int, batch: dict[str, torch.Tensor]) -> None:
        """A micro-batch enters the loop."""
        self._row = {"mb": len(self.rows), "epoch": epoch, "kldiv_steps": []}
        self._row |= {"ploss_steps": [], "topk_loss_steps": []} if self.algorithm == "hass" else {}
        self._row["grad_norm_after_backward"] = []
        self._forwards = 0
        for name, value in batch.items():
            self._keep(f"batch.{name}", value)
            self.dtypes.note(f"batch.{name}", value)

    def forward(self, hidden: torch.Tensor, predict: torch.Tensor) -> None:
        """The draft model turned ``hidden`` into ``predict``."""
        if self._forwards == 0:
            self._keep("step0.hidden_in", hidden)
        self._keep(f"step{self._forwards}.predict", predict)
        self.dtypes.note("predict", predict)
        self.dtypes.note("model_input_hidden", hidden)
        self._forwards += 1

    def losses(self, values: Tensors) -> None:
        """The losses of one step, with its logits and the target distribution."""
        step = len(self._row["kldiv_steps"])
        for name, value in values.items():
            self.dtypes.note(name, value)
            if name in _LOSSES:
                self._row[_LOSSES[name]].append(value.item())
                self._keep(f"step{step}.{name}", value.reshape(1))
            elif name == "logits":
                self._keep(f"step{step}.logits", value)
            elif step == 0:
                self._keep(name, value)

    def backward(self, loss: torch.Tensor, grad_norm: float) -> None:
        """One backward pass has added its gradients."""
        self.dtypes.note("loss_to_backward", loss)
        self._row["grad_norm_after_backward"].append(grad_norm)

    def clip(self, what: dict[str, Any], gradients: dict[str, torch.Tensor | None], synced: bool) -> None:
        """The gradients are about to be clipped, or have been reported by DeepSpeed."""
        self._row["clip"] = what
        if not (self.in_first_step and synced):
            return
        self.without_grad = sorted(name for name, value in gradients.items() if value is None)
        for name, value in gradients.items():
            if value is not None:
                self._keep(f"grad.{name}", value)
                self.dtypes.note(f"grad.{name}", value)

    def clip_returned(self, value: Any) -> None:
        """The norm that clipping reported."""
        if self._row["clip"]["kind"] == "norm":
            self._row["clip"]["returned"] = None if value is None else float(value)

    def before_step(self, lr: float, synced: bool) -> None:
        """The optimizer is about to be called."""
        self._row |= {"lr_used": lr, "optimizer_called_with_sync": synced}

    def after_step(self, model: torch.nn.Module, synced: bool) -> None:
        """The optimizer has been called; with ``synced`` it has moved the parameters."""
        if self.in_first_step and synced:
            self.tensors |= {f"after.{name}": value for name, value in snapshot(model).items()}

    def after_scheduler(self, lr: float) -> None:
        """The scheduler has been called."""
        self._row["lr_after"] = lr

    def end(self, names: dict[str, Any], synced: bool) -> None:
        """The micro-batch is done; ``names`` are the local names of the script's ``main``."""
        ct = float(names["ct"])
        self._row |= {"loss": names["loss"].item(), "cc": float(names["cc"]), "ct": ct}
        self._row["topk_correct"] = [value.item() for value in names["topkacc"]]
        self._row |= {"logdict": dict(names["logdict"]) if ct else None, "synced": synced}
        self._keep_scalars()
        self._close_row(synced)

    def _keep_scalars(self) -> None:
        """Reported loss and gradient norm, as float64 where the script's value is not one float32 tensor."""
        if self.algorithm == "hass":
            loss, norm, dtype = self._row["loss"], self._row["grad_norm_after_backward"][-1], torch.float64
        else:
            loss, norm, dtype = self._row["loss"], self._row["clip"].get("returned"), torch.float32
        self._keep("loss", torch.tensor([loss], dtype=dtype))
        if norm is not None:
            self._keep("grad_norm", torch.tensor([norm], dtype=dtype))

    def _close_row(self, synced: bool) -> None:
        if self.in_first_step:
            self.first_micro_batches.append(self._row["mb"])
        self.rows.append(self._row)
        self.optimizer_steps += int(synced)
        if not self.in_first_step:
            self.dtypes.close()

    def _keep(self, name: str, value: torch.Tensor) -> None:
        if self.in_first_step:
            self.tensors[f"mb{self._row['mb']}.{name}"] = value.detach().clone()


def write_recording(folder: Path, recorder: Recorder, final: Tensors, meta: dict[str, Any]) -> None:
    """Write all files of a recording; ``meta.json`` last, so that a folder with it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(recorder.tensors, folder / "first_step.safetensors")
    _save(final, folder / "final.safetensors")
    if recorder.uniforms:
        uniforms = {f"u{index:04d}": value for index, value in enumerate(recorder.uniforms)}
        _save(uniforms, folder / "noise_uniforms.safetensors")
    (folder / "trajectory.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorder.rows))
    write_meta(folder, meta)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json``, making the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _save(tensors: Tensors, file: Path) -> None:
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, file)
