"""The pair: ``parity run sprout/compare.py:PAIR`` holds the port against the original."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from parity import Pair, Side
from ports.training.data import Batch
from ports.training.loss import LossImplementation
from ports.training.optimizer import build_optimizer, build_schedule
from sprout import cases
from sprout.names import NAMES
from sprout.original import ORIGINAL
from sprout.train import GRAD_CLIP, build, build_objective


def loss(draft: Any, batch: Batch) -> Tensor:
    """What the training command runs backward on, module by module instead of fused, so that every call is seen."""
    objective = build_objective(cases.settings(loss_implementation=LossImplementation.EAGER), draft)
    value: Tensor = objective(batch).backward_loss
    return value


def optimizer(parameters: list[nn.Parameter]) -> Optimizer:
    """The training command's."""
    return build_optimizer(nn.ParameterList(parameters), cases.LEARNING_RATE)


def schedule(chosen: Any) -> Any:
    """The training command's, for this case's number of steps."""
    return build_schedule(chosen, *cases.settings().schedule(len(cases.LENGTHS)))


def step(module: nn.Module, chosen: Optimizer) -> None:
    """Clip and step, as the training command does."""
    nn.utils.clip_grad_norm_(module.parameters(), GRAD_CLIP)
    chosen.step()


PORT = Side(lambda: build(cases.settings()), loss, optimizer, schedule, step, name="sprout")
PAIR = Pair("sprout", ORIGINAL, PORT, lambda: [cases.case()], NAMES)
