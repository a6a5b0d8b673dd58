"""A port's own training loop, whatever the port: its curve and its trained weights, as a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.utils import set_seed
from torch import nn

from parity.calls import dtype_of, state_of
from parity.environment import describe, deterministic, quietly
from parity.names import NameMap
from parity.prototypes.port import reset_accelerate
from parity.side import Side, fresh_module
from parity.trace import Point, Trace
from ports.training.loop import Loop
from ports.training.observer import Observer, StepRecord
from ports.training.runs import finish
from ports.training.saving import save_draft


class CurveObserver(Observer):
    """One point for every micro-batch, without the steps' losses, which no side has; the draft's state at the end."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def stepped(self, record: StepRecord, objective: nn.Module) -> None:
        point = Point(record.epoch, record.loss, (), record.grad_norm, record.lr_used, record.lr_after)
        self.trace.curve.append(point)

    def finished(self, objective: nn.Module) -> None:
        draft = objective.get_submodule("draft")
        self.trace.dtype = dtype_of(draft)
        self.trace.trained = tuple(name for name, value in draft.named_parameters() if value.requires_grad)
        self.trace.keep("final", state_of(draft))


def trace_command(begin: Callable[[Observer], Loop], seed: int = 0) -> Trace:
    """Run the loop that ``begin`` makes around the observer, to its end."""
    trace = Trace("command", "loop", "float32")
    with deterministic(seed):
        reset_accelerate()
        set_seed(seed)
        loop = begin(CurveObserver(trace))
        with quietly():
            finish(loop)
        trace.environment = describe(seed)
    return trace


def save_start(original: Side, port: Side, names: NameMap, folder: Path, seed: int = 0) -> Path:
    """A checkpoint of the port with the original's initial weights, for ``--ckpt_path DIR --weights_only``."""
    with deterministic(seed):
        start = names.parameters(state_of(original.build()))
    return save_draft(fresh_module(port, start), folder)
