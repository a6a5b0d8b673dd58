"""A product with [a, b_s] where a is the same at every TTT step s.

    [a, b_s] W^T = a W[:, :h]^T + b_s W[:, h:]^T

The first term, half of the cost, is computed once and its gradient once, from the steps' sum. In half precision the
whole product is rounded once and the sum of two twice, so there it is left whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE = (torch.float32, torch.float64)


class SharedHalf:
    """Holds the first term; called with b_s [B, T, h] it gives the whole product [B, T, N].

    Args:
        first: a, [B, T, h].
        weight: W, [N, 2h].
        bias: [N] or None.
    """

    def __init__(self, first: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        of_first, self.of_second = weight.chunk(2, dim=1)
        self.shared = F.linear(first.to(weight.dtype), of_first, bias).flatten(0, 1)

    def __call__(self, second: Tensor) -> Tensor:
        product = torch.addmm(self.shared, second.flatten(0, 1), self.of_second.t())
        return product.unflatten(0, second.shape[:2])


def can_split(module: nn.Module, projections: Iterable[nn.Module]) -> bool:
    """May the products with ``projections``, which lie in ``module``, be taken in halves?

    Not in half precision; not where they are no plain product with one weight (LoRA's, quantised ones); not while a
    hook inside the module (a sharded module's, a tracer's) has to see the modules called.
    """
    if any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules()):
        return False
    return all(type(each) is nn.Linear and _wide(each.weight) for each in projections)


def _wide(weight: Tensor) -> bool:
    return weight.dtype in WIDE and not torch.is_autocast_enabled(weight.device.type)
