"""Where it goes wrong: the first module whose inputs agree with the reference's and whose outputs do not.

Forward first, then backward: there the question is for the gradient that enters a module from behind and the one that
leaves it. Modules go by the draft's names; a container (``layers.0``) is named when everything inside it agrees, so
that the fault lies between its modules.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.case import Case
from parity.environment import deterministic
from parity.runs.port import start_port
from parity.runs.reference.loop import Visits
from parity.runs.reference.setup import prepare

AGREE = 1e-4
"""Relative to the largest entry: far above rounding, far below what a fault does."""


@dataclass
class Passage:
    """What went through one module at one TTT step."""

    module: str
    step: int
    into: Tensor
    out: Tensor


@dataclass
class Passages:
    """All passages of a forward in the order in which the modules finished, with the parameters' gradients after it."""

    seen: list[Passage] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def add(self, module: str, step: int, into: Tensor, out: Tensor) -> None:
        for tensor in (into, out):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.retain_grad()
        self.seen.append(Passage(module, step, into, out))

    def keyed(self) -> dict[tuple[str, int], Passage]:
        return {(passage.module, passage.step): passage for passage in self.seen}


@dataclass(frozen=True)
class Finding:
    """The first place where the two sides part."""

    direction: str
    module: str
    step: int
    detail: str

    def __str__(self) -> str:
        place = f"inputs of {self.module} agree at TTT step {self.step}, its outputs do not"
        return f"{self.direction}: {place}; {self.detail}"


def localise(case: Case) -> Finding | None:
    """Run both sides on the case's first batch and find where they part; None if they agree everywhere."""
    with deterministic():
        batch = _longest_row(next(Visits(case).batches_of_pass(0)))
        expected, found = reference_passages(case, batch), port_passages(case, batch)
    return first_forward(expected, found) or first_backward(expected, found)


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
    """The port's, through forward hooks on the draft's modules; only the eager loss calls norm and head as modules."""
    passages = Passages()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as hooks:
        objective: Any = start_port(case, Path(folder), loss_implementation="eager").objective
        for name, module in objective.draft.named_modules():
            if name:
                hook = _hook(name, passages)
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        named = {"features" if name == "hidden_states" else name: value for name, value in batch.items()}
        objective.train()
        objective(named).backward_loss.backward()
        grads = {name: value.grad for name, value in objective.draft.named_parameters()}
        passages.gradients = {name: grad for name, grad in grads.items() if grad is not None}
    return passages


def _hook(name: str, passages: Passages) -> Any:
    calls = iter(range(10**6))

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        into = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        out = out[0] if isinstance(out, tuple) else out
        if into is not None and isinstance(out, Tensor):
            passages.add(name, next(calls), into, out)

    return hook


def first_forward(expected: Passages, found: Passages) -> Finding | None:
    """In the order in which modules finish, so that an inner module is named before the one around it."""
    other = found.keyed()
    for passage in expected.seen:
        match = other.get((passage.module, passage.step))
        if match is None:
            return Finding("forward", passage.module, passage.step, "the port never calls it")
        if _agree(passage.into, match.into) and not _agree(passage.out, match.out):
            return Finding("forward", passage.module, passage.step, _worst(passage.out, match.out))
    return None


def first_backward(expected: Passages, found: Passages) -> Finding | None:
    """From the losses back: gradients of outputs agree, those of inputs do not; then parameters on their own.

    A container finishes last going forward and starts first going back, so a module inside it is preferred.
    """
    other = found.keyed()
    parting = [passage for passage in reversed(expected.seen) if _parts(passage, other[passage.module, passage.step])]
    if not parting:
        return _first_parameter(expected.gradients, found.gradients)
    first = parting[0]
    inner = [p for p in parting if p.step == first.step and p.module.startswith(f"{first.module}.")]
    first = inner[0] if inner else first
    match = other[first.module, first.step]
    return Finding("backward", first.module, first.step, _worst(*_filled(first.into.grad, match.into.grad)))


def _parts(passage: Passage, match: Passage) -> bool:
    """Do the gradients of the outputs agree and those of the inputs not?"""
    out, into = (passage.out.grad, match.out.grad), (passage.into.grad, match.into.grad)
    if any(first is None and second is None for first, second in (out, into)):
        return False
    return _same_gradient(*out) and not _same_gradient(*into)


def _first_parameter(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Finding | None:
    for name in sorted({*expected, *found}):
        pair = expected.get(name), found.get(name)
        if not _same_gradient(*pair):
            module = name.rpartition(".")[0]
            return Finding("backward", module, 0, f"gradient of {name}: {_worst(*_filled(*pair))}")
    return None


def _agree(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    size = expected.detach().abs().max().clamp(min=1e-12)
    return bool((expected.detach() - found.detach()).abs().max() <= AGREE * size)


def _same_gradient(expected: Tensor | None, found: Tensor | None) -> bool:
    if expected is None or found is None:
        return expected is found
    return _agree(expected, found)


def _filled(expected: Tensor | None, found: Tensor | None) -> Iterable[Tensor]:
    """A missing gradient counts as zeros."""
    present = expected if expected is not None else found
    assert present is not None
    return (torch.zeros_like(present) if value is None else value for value in (expected, found))


def _worst(expected: Tensor, found: Tensor) -> str:
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    flat = int((expected - found).detach().abs().nan_to_num(nan=float("inf")).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape))
    return (
        f"largest at {index}: expected {expected.flatten()[flat].item():.6g}, found {found.flatten()[flat].item():.6g}"
    )
