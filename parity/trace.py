"""What a run computed: named tensors and one point of every curve per micro-batch.

Tensor names, with j the micro-batch of the first optimizer step, s the TTT step and parameters by Speculators' names::

    mb{j}.batch.{input_ids,hidden_states,target,attention_mask,loss_mask}
    mb{j}.target_p, mb{j}.step0.hidden_in, mb{j}.step{s}.{hidden,logits,loss}
    mb{j}.grad.<parameter>, mb{j}.grad_norm, init.<parameter>, after.<parameter>, final.<parameter>

A trace of the public kit has, for call n of a module, with the place of a tensor among its arguments or outputs::

    mb0.call.<module>#{n}.{into,out,into_grad,out_grad}.<place>

Gradients are those before clipping. ``after`` is the state after the first optimizer step, ``final`` after the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from parity.step import StepAudit

GROUPS = {"init": "init.", "after": "after.", "final": "final.", "calls": "mb0.call."}
"""Groups of tensors that a trace may do without, and how their names begin."""

MICRO_BATCH = re.compile(r"mb(\d{1,9})\.")


@dataclass(frozen=True)
class Point:
    """One micro-batch. ``grad_norm`` is the norm before clipping, where one was taken.

    ``logged`` holds what an algorithm logs besides loss, rate and hits, under its names.
    """

    epoch: int
    loss: float
    step_losses: tuple[float, ...]
    grad_norm: float | None
    lr_used: float
    lr_after: float
    correct: int = 0
    rows: int = 0
    top: tuple[int, ...] = ()
    stepped: bool = True
    logged: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Trace:
    """Everything one run of one case gave.

    ``audits`` are the optimizer steps recomputed, where the run let itself be watched.
    ``configuration`` holds what the run says it ran with, read from its live objects where it can be. ``trained`` and
    ``frozen`` name the parameters, so that gradient flow can be judged.
    """

    run: str
    case: str
    dtype: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    prints: list[str] = field(default_factory=list)
    configuration: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    audits: list[StepAudit] = field(default_factory=list)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix``, without it: ``group("after.")`` is the state after the first step."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def micro_batches(self) -> list[int]:
        """Indices of the micro-batches of the first optimizer step."""
        return sorted({int(match[1]) for match in map(MICRO_BATCH.match, self.tensors) if match})

    def without(self, groups: Iterable[str]) -> Trace:
        """The same without some of ``GROUPS``."""
        left_out = tuple(dict.fromkeys([*self.left_out, *groups]))
        prefixes = tuple(GROUPS[name] for name in left_out)
        tensors = {name: value for name, value in self.tensors.items() if not name.startswith(prefixes)}
        return replace(self, tensors=tensors, left_out=left_out, calls=() if "calls" in left_out else self.calls)
