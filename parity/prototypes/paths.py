"""How strongly each TTT step's loss depends on the states of the steps before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def path_norms(losses: Iterable[Tensor], states: Sequence[Tensor]) -> dict[str, Tensor]:
    """|d loss_s / d hidden_i| for every i <= s, named ``s.i``; zero where no path leads.

    ``hidden_i`` is the state that enters step i. The graph is kept for the backward that follows.
    """
    norms = {}
    for s, loss in enumerate(losses):
        reachable = [i for i in range(s + 1) if states[i].requires_grad]
        found = _gradients(loss, [states[i] for i in reachable])
        for i in range(s + 1):
            grad = found[reachable.index(i)] if i in reachable else None
            norms[f"{s}.{i}"] = torch.zeros(1) if grad is None else grad.double().norm().reshape(1)
    return norms


def _gradients(loss: Tensor, states: list[Tensor]) -> Sequence[Tensor | None]:
    if not states or not loss.requires_grad:
        return [None] * len(states)
    return torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
