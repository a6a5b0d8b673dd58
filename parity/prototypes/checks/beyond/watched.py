"""The port's draft with hooks on its modules, as tracers and sharding put them there, against the same draft without.

What is shared between the TTT steps, or done on the rows in the loss alone, passes modules by: at the last step of
Eagle3, at every step of HASS. Where somebody watches, every module is called at every step; the numbers are the same.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from parity.compare import compare_groups, compare_value
from parity.environment import deterministic, quietly
from parity.prototypes.algorithms import ALGORITHMS
from parity.prototypes.case import Case
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.port import reset_accelerate, settings_for
from parity.verdict import Row
from ports.training.alignment import Alignment
from ports.training.attention.trained_rows import TrainedRows
from ports.training.data.batches import Batch, collate

SAMPLES = 2
"""Of the batch, one of them padded."""


def check_watched(evidence: Evidence) -> list[Row]:
    """Rows of the implementations check, for drafts of one and of three layers: losses, gradients and calls."""
    rows = []
    for layers in (1, 3):
        with tempfile.TemporaryDirectory() as folder, deterministic(), quietly():
            objective, batch = _fresh(evidence, Path(folder), layers)
        name = f"watched, {layers} deep"
        with patch.object(TrainedRows, "apply", autospec=True, side_effect=TrainedRows.apply) as apply:
            expected = _numbers(name, objective, batch)
        with _watched(objective.draft) as calls:
            found = _numbers(name, objective, batch)
        subject = evidence.subject("implementations")
        called = {name: _times(name, evidence.case) for name, _ in _modules(objective.draft)}
        rows += compare_groups(subject, "grad", expected, found, evidence.tolerance("grad"))
        rows.append(compare_value(subject, "paths", f"{name}: calls", called, dict(calls)))
        own = ["layers.0.input_layernorm"] if evidence.case.algorithm == "hass" else []
        bare = [name for name, module in objective.draft.named_modules() if type(module) is nn.Identity]
        rows.append(compare_value(subject, "paths", f"{layers} deep: no norm", own, bare))
        steps = 1 if evidence.case.algorithm == "eagle3" else evidence.case.ttt_steps
        rows.append(compare_value(subject, "paths", f"{layers} deep: steps on trained rows", steps, apply.call_count))
    return rows


def _fresh(evidence: Evidence, folder: Path, layers: int) -> tuple[Any, Batch]:
    """The objective of a draft that was just drawn, and a batch for it; several layers are trained in chain alone."""
    config = json.loads(evidence.case.configpath.read_text()) | {"num_hidden_layers": layers}
    (folder / "draft.json").write_text(json.dumps(config))
    changes = {"configpath": str(folder / "draft.json"), "ttt_alignment": Alignment.CHAIN, "noise": False}
    settings = settings_for(evidence.case, folder / "run", **changes)
    train = ALGORITHMS[evidence.case.algorithm].train
    draft = train.build(settings)
    dataset = train.build_dataset(settings, draft.config)
    reset_accelerate()
    loop: Any = train.start(settings, draft, dataset)
    loop.accelerator.end_training()
    return loop.plan.objective, collate([dataset.sample(index) for index in range(min(SAMPLES, len(dataset)))])


def _numbers(prefix: str, objective: Any, batch: Batch) -> dict[str, Tensor]:
    objective.zero_grad(set_to_none=True)
    outcome = objective(batch)
    outcome.backward_loss.backward()
    grads = {name: value.grad for name, value in objective.draft.named_parameters() if value.grad is not None}
    return {f"{prefix}: {name}": value.clone() for name, value in {"loss": outcome.step_losses, **grads}.items()}


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
