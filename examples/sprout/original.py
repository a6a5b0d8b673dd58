"""The original side: the prototype's model, its loss and its optimizer, as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from parity import Side
from sprout import cases
from sprout.prototype import Sprout, cost


def build() -> nn.Module:
    """The prototype's model, its norms drawn around 1."""
    model = Sprout(*cases.verifier_tables())
    with torch.no_grad():
        for norm in (model.pre, model.post):
            norm.g.uniform_(0.5, 1.5)
    return model


def optimizer(parameters: list[nn.Parameter]) -> Optimizer:
    """As in ``tune``."""
    return AdamW(parameters, cases.LEARNING_RATE, (0.9, 0.95), weight_decay=0.01)


def schedule(chosen: Optimizer) -> LambdaLR:
    """As in ``tune``."""
    return LambdaLR(chosen, lambda n: 1 - n / cases.STEPS)


def step(model: nn.Module, chosen: Optimizer) -> None:
    """As in ``tune``."""
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    chosen.step()


ORIGINAL = Side(build, cost, optimizer, schedule, step, name="prototype")
