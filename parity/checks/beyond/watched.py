"""The port's draft with hooks on its modules, as tracers and sharding put them there, against the same draft without.

What is shared between the TTT steps, or done on the rows in the loss alone, passes modules by. Where somebody watches
them, every module of a layer is called at every step, and the numbers are the same.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from parity.case import Case
from parity.checks.evidence import Evidence
from parity.compare import compare_groups, compare_value
from parity.environment import deterministic, quietly
from parity.result import Row
from parity.runs.port import start_port
from ports.training.data.batches import Batch, collate

SAMPLES = 2
"""Of the batch, one of them padded."""


def check_watched(evidence: Evidence) -> list[Row]:
    """Rows of the implementations check: gradients with the losses, and how often each module of the layers ran."""
    with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
        loop = start_port(evidence.case, Path(folder), max_steps=1)
        plan: Any = loop.plan
        objective, dataset = plan.objective, plan.loader.dataset
        loop.accelerator.end_training()
    batch = collate([dataset.sample(index) for index in range(min(SAMPLES, len(dataset)))])
    expected = _numbers(objective, batch)
    with _watched(objective.draft) as calls:
        found = _numbers(objective, batch)
    subject = evidence.subject("implementations")
    called = {name: _times(name, evidence.case) for name, _ in _modules(objective.draft)}
    return [
        *compare_groups(subject, "grad", expected, found, evidence.tolerance("grad")),
        compare_value(subject, "paths", "watched: calls", called, dict(calls)),
    ]


def _numbers(objective: Any, batch: Batch) -> dict[str, Tensor]:
    objective.zero_grad(set_to_none=True)
    outcome = objective(batch)
    outcome.backward_loss.backward()
    grads = {name: value.grad for name, value in objective.draft.named_parameters() if value.grad is not None}
    return {f"watched: {name}": value.clone() for name, value in {"loss": outcome.step_losses, **grads}.items()}


def _modules(draft: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The decoder layers, all that is in them, and the projection before them."""
    return ((name, each) for name, each in draft.named_modules() if name == "fc" or name.startswith("layers."))


def _times(name: str, case: Case) -> int:
    """Eagle3 projects the verifier's features once, HASS fuses at every step."""
    return 1 if name == "fc" and case.algorithm == "eagle3" else case.ttt_steps


@contextmanager
def _watched(draft: nn.Module) -> Iterator[Counter[str]]:
    """Count the calls of modules, by name."""
    calls, hooks = Counter[str](), []
    for name, module in _modules(draft):

        def count(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            calls[name] += 1

        hooks.append(module.register_forward_hook(count))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
