"""A product with [a, b_s] where a is the same at every TTT step s.

    [a, b_s] W^T = a W[:, :h]^T + b_s W[:, h:]^T

The first term, half of the cost, is computed once and its gradient once, from the steps' sum.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SharedHalf:
    """Holds the first term; called with b_s [B, T, h] it gives the whole product [B, T, N].

    Args:
        first: a, [B, T, h].
        weight: W, [N, 2h].
        bias: [N] or None.
    """

    def __init__(self, first: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        of_first, self.of_second = weight.chunk(2, dim=1)
        self.shared = F.linear(first.to(_precision(first, weight)), of_first, bias).flatten(0, 1)

    def __call__(self, second: Tensor) -> Tensor:
        product = torch.addmm(self.shared, second.flatten(0, 1), self.of_second.t())
        return product.unflatten(0, second.shape[:2])


def plain(projections: Iterable[nn.Module]) -> bool:
    """Are these linear layers as they come? LoRA's or quantised ones are no product with one weight."""
    return all(type(projection) is nn.Linear for projection in projections)


def watched(module: nn.Module) -> bool:
    """Does a hook anywhere inside (a sharded module's, a tracer's) have to see the modules called?"""
    return any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())


def _precision(states: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast chooses by itself; without it both sides of a product need the weight's dtype."""
    return states.dtype if torch.is_autocast_enabled(states.device.type) else weight.dtype
