"""The kit's training loop: build, and one optimizer step after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parity.kit.side import Batch, Side
from parity.trace import Point


class Training:
    """A module in training, its optimizer and schedule, and how many steps were made."""

    def __init__(self, side: Side, module: nn.Module) -> None:
        self.side, self.module = side, module
        self.optimizer: Optimizer = side.optimizer([p for p in module.parameters() if p.requires_grad])
        self.schedule = side.schedule(self.optimizer) if side.schedule is not None else None
        self.steps = 0

    def backward(self, batch: Batch) -> Tensor:
        """Loss and gradients of one batch."""
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """A scalar with a graph."""
        loss = self.side.loss(self.module, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of {self.side.name or 'a side'} must be one number, found {found}")
        return loss

    def step(self, loss: Tensor) -> Point:
        """Let the optimizer and the schedule step with the gradients there are, and forget those."""
        norm, used = self.grad_norm(), self.rate
        self.side.step(self.module, self.optimizer)
        if self.schedule is not None:
            self.schedule.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return Point(0, float(loss), (), norm, used, self.rate)

    def run(self, batches: Sequence[Batch], until: int) -> list[Point]:
        """Steps up to number ``until``; the batches come round and round."""
        points = []
        while self.steps < until:
            points.append(self.step(self.backward(batches[self.steps % len(batches)])))
        return points

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def gradients(self) -> dict[str, Tensor]:
        """Copies by name; parameters without a gradient are left out."""
        named = self.module.named_parameters()
        return {name: value.grad.detach().clone() for name, value in named if value.grad is not None}

    def grad_norm(self) -> float:
        """Global norm."""
        grads = [value.grad for value in self.module.parameters() if value.grad is not None]
        return float(torch.stack([grad.double().norm() for grad in grads]).norm()) if grads else 0.0
