"""Where a port goes wrong: the first module whose inputs agree with the reference's and whose outputs do not.

The kit's search on the two sides' first batch. Modules go by the draft's names, their calls are the TTT steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.calls import WHOLE, Call, call_of, keep_call, watch
from parity.environment import deterministic
from parity.locate import Finding, first_backward, first_forward, within
from parity.prototypes.case import Case
from parity.prototypes.port import start_port
from parity.prototypes.reference.loop import Visits
from parity.prototypes.reference.setup import prepare
from parity.trace import Trace

AGREE = 1e-4
"""Relative to the largest entry: far above rounding, far below what a fault does."""


@dataclass
class Passages:
    """The modules' calls in the order in which they ended, one a TTT step, and the parameters' gradients."""

    calls: list[Call] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def add(self, module: str, step: int, into: Tensor, out: Tensor) -> None:
        self.calls.append(call_of(module, step, into, out))


def localise(case: Case) -> Finding | None:
    """Run both sides on the case's first batch and find where they part; None if they agree everywhere."""
    with deterministic():
        batch = _longest_row(next(Visits(case).batches_of_pass(0)))
        expected, found = reference_passages(case, batch), port_passages(case, batch)
    return part(expected, found)


def part(expected: Passages, found: Passages) -> Finding | None:
    """Where two sides part, forward before backward."""
    agree, gradients = within(AGREE), (expected.gradients, found.gradients)
    forward = first_forward(expected.calls, found.calls, agree, every_module=True)
    return forward or first_backward(expected.calls, found.calls, gradients, agree)


def sentence(finding: Finding) -> str:
    """For reports about a draft, whose calls are TTT steps."""
    place = f"inputs of {finding.module} agree at TTT step {finding.call}, its outputs do not"
    return f"{finding.direction}: {place}; {finding.detail}"


def trace_calls(case: Case, trace: Trace) -> None:
    """Put the port's calls on the longest row of the first batch into its trace."""
    with deterministic():
        passages = port_passages(case, _longest_row(next(Visits(case).batches_of_pass(0))))
    trace.calls = tuple(call.key for call in passages.calls)
    for call in passages.calls:
        keep_call(trace, call)


def _longest_row(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row of a batch that has no padding: at padded positions the two sides may hold what they like."""
    row = int(batch["attention_mask"].sum(1).argmax())
    return {name: value[row : row + 1] for name, value in batch.items()}


def reference_passages(case: Case, batch: Mapping[str, Tensor]) -> Passages:
    """The reference's; keys and values are projected once, so that gradients meet in the same places as the port's."""
    passages, setup = Passages(), prepare(case)
    weights = setup.weights()
    torch.stack(list(setup.forward(weights, batch, tap=passages.add, project_once=True).backward)).sum().backward()
    grads = {name: weights[name].grad for name in setup.masters}
    passages.gradients = {name: grad for name, grad in grads.items() if grad is not None}
    return passages


def port_passages(case: Case, batch: Mapping[str, Tensor]) -> Passages:
    """The port's, watched; only the eager loss calls norm and head as modules.

    Inputs are shared as the reference shares them, so that their gradients are those of all who read them.
    """
    with tempfile.TemporaryDirectory() as folder:
        objective: Any = start_port(case, Path(folder), loss_implementation="eager").objective
        named = {"features" if name == "hidden_states" else name: value for name, value in batch.items()}
        objective.train()
        with watch(objective.draft, own_inputs=False) as calls:
            loss = objective(named).backward_loss
        loss.backward()
    grads = {name: value.grad for name, value in objective.draft.named_parameters()}
    inner = [call for call in calls if call.module != WHOLE]
    return Passages(inner, {name: grad for name, grad in grads.items() if grad is not None})
