"""AdamW, the linear schedule and gradient clipping, by hand.

AdamW follows Loshchilov and Hutter 2019, algorithm 2, with both moments corrected for their start at zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.95, 1e-8, 0.01


class AdamW:
    """Updates a dict of parameters in place."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One update; a parameter without a gradient stays as it is."""
        self.steps += 1
        for name, gradient in gradients.items():
            first, second, parameter = self.first[name], self.second[name], self.parameters[name]
            parameter.mul_(1 - lr * WEIGHT_DECAY)
            first.lerp_(gradient, 1 - BETA1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            scale = (second.sqrt() / (1 - BETA2**self.steps) ** 0.5).add_(EPS)
            parameter.addcdiv_(first, scale, value=-lr / (1 - BETA1**self.steps))


def linear_schedule(step: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at optimizer step ``step``."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def clip_by_norm(gradients: Mapping[str, Tensor], limit: float) -> tuple[dict[str, Tensor], float]:
    """Scaled so that the global norm is at most ``limit``; and the norm before."""
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}, float(norm)


def clip_by_value(gradients: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Every entry moved into [-limit, limit]."""
    return {name: gradient.clamp(-limit, limit) for name, gradient in gradients.items()}
