"""One side of a comparison: how to build it, what its loss is, how it steps and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim import Optimizer

from parity.calls import first_of, tensors_of

Batch = Any
"""What ``loss`` is given. Without a ``loss``: keyword arguments (a mapping), arguments (a tuple) or one argument."""


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimizer."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def call(module: nn.Module, batch: Batch) -> Any:
    """The module on a batch."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, tuple) else module(batch)


def pattern_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The default loss: the output's own ``loss`` if it has one, else the distance of its first tensor to a pattern.

    The pattern is a cosine over the entries, so that every entry has a gradient of its own and the loss is far from 0.
    """
    out = call(module, batch)
    own = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if isinstance(own, Tensor):
        return own
    values = first_of(tensors_of(out))
    if values is None:
        raise TypeError(f"{type(module).__name__} gave {type(out).__name__} without a tensor: hand in a loss")
    pattern = torch.arange(values.numel(), device=values.device, dtype=torch.float64).cos()
    return (values - pattern.reshape(values.shape).to(values.dtype)).square().mean()


@dataclass(frozen=True)
class Side:
    """Plain callables. Only ``build`` is needed.

    Args:
        build: a fresh module, in the mode (train, eval) and the dtype it is to be compared in.
        loss: a scalar of the module and a batch.
        optimizer: from the parameters that require a gradient.
        schedule: a learning rate scheduler of the optimizer, stepped after it.
        step: what happens between backward and the next batch, clipping for example; ``optimizer.step()`` by default.
        save, load: into a folder and back from it; ``save_pretrained`` and ``from_pretrained`` where the module has
            them, else its state dict as safetensors.
        name: in reports.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor] = pattern_loss
    optimizer: Callable[[list[nn.Parameter]], Optimizer] = adamw
    schedule: Callable[[Optimizer], Any] | None = None
    step: Callable[[nn.Module, Optimizer], None] = lambda module, optimizer: optimizer.step()
    save: Callable[[nn.Module, Path], None] | None = None
    load: Callable[[Path], nn.Module] | None = None
    name: str = ""

    @staticmethod
    def command(words: Sequence[str], name: str = "", timeout: float = 3600) -> Command:
        """A side that is a command writing a trace folder; ``{out}`` in its words is the folder's path."""
        return Command(tuple(words), name, timeout)

    def write(self, module: nn.Module, folder: Path) -> None:
        """Save the module into a folder that exists."""
        if self.save is not None:
            self.save(module, folder)
        elif hasattr(module, "save_pretrained"):
            cast(Any, module).save_pretrained(folder)
        else:
            save_model(module, str(folder / "model.safetensors"))

    def read(self, folder: Path) -> nn.Module:
        """A module with what ``write`` left, in the mode that ``build`` gives."""
        if self.load is not None:
            return self.load(folder)
        module = self.build()
        if hasattr(module, "from_pretrained") and self.save is None:
            opened: nn.Module = cast(Any, type(module)).from_pretrained(folder)
            return opened.train(module.training)
        load_model(module, str(folder / "model.safetensors"))
        return module


@dataclass(frozen=True)
class Command:
    """A side in a process of its own, on this machine, that leaves a trace."""

    words: tuple[str, ...]
    name: str = ""
    timeout: float = 3600


AnySide = Side | Command
