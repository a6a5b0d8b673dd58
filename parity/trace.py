"""What a run computed: named tensors, one point of every curve per micro-batch, and what it says it ran with.

Tensor names, with j the micro-batch of the first optimizer step, s the step of an unrolled model::

    mb{j}.batch.<input>, mb{j}.target_p, mb{j}.step0.hidden_in, mb{j}.step{s}.{hidden,logits,loss}, mb{j}.loss
    mb{j}.grad.<parameter>, mb{j}.grad_norm, mb{j}.path.<s>.<i>, init.<name>, after.<name>, final.<name>
    mb{j}.call.<module>#{n}.{into,out,into_grad,out_grad}.<place>
    mb{j}.tap.<name>#{n}, mb{j}.tap_grad.<name>#{n}, mb{j}.draw.<name>#{n}

Gradients are those before clipping. ``init`` are parameters and saved buffers at the start, ``after`` after the first
optimizer step, ``final`` after the last. Call n of a module is counted from 0; a place is an argument or an output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

TIE = 2e-5
"""How close two logits are that may come in either order: twice what a logit may be off by."""

GROUPS = {"init": "init.", "after": "after.", "final": "final.", "calls": "mb0.call."}
"""Groups of tensors that a trace may do without, and how their names begin."""

STATES = {"init": ("weights", "weights"), "after": ("optimizer_step", "after"), "final": ("curve", "final")}
"""Groups of parameters and buffers, each with the check and the quantity of the tolerance table it belongs to."""

MICRO_BATCH = re.compile(r"mb(\d{1,9})\.")


@dataclass(frozen=True)
class Point:
    """One micro-batch. ``grad_norm`` is the norm before clipping, where one was taken.

    ``correct`` and ``top`` count the ``rows`` whose target is the first choice, and among the first 1, 2, ...; ``ties``
    how many of those counts rounding decides: rows whose target's logit lies within ``TIE`` of the place's edge.
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
    ties: tuple[int, ...] = ()


@dataclass(frozen=True)
class Deviation:
    """The largest difference of one kind in one step.

    ``rounding`` counts units of rounding: the difference over the dtype's epsilon times the size of the numbers that
    were added up. ``expected`` and ``found`` are the entry's values, ``index`` is where it stands in ``parameter``.
    """

    parameter: str
    rounding: float
    index: tuple[int, ...]
    expected: float
    found: float


@dataclass(frozen=True)
class StepAudit:
    """One optimizer step, numbered from 1: the rate and norms it used, and the worst deviation of each kind.

    ``norm_before`` is the gradients' norm after the backward, ``norm_after`` of what reached the optimizer.
    ``deviations`` are by quantity: ``clip``, ``weight``, and the optimizer's states (``exp_avg``, ...); ``counted`` is
    the number of steps that the optimizer itself says it has made. ``against`` says whose formula of the update it
    was, ``reference`` or ``library``; empty where none is known.
    """

    step: int
    lr_expected: float | None
    lr_used: float
    norm_before: float
    norm_after: float
    counted: int | None
    deviations: dict[str, Deviation] = field(default_factory=dict)
    against: str = "reference"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StepAudit:
        """The audit that :meth:`as_json` wrote."""
        deviations = {
            name: Deviation(**{**one, "index": tuple(one["index"])}) for name, one in value["deviations"].items()
        }
        return cls(**{**value, "deviations": deviations})


@dataclass
class Trace:
    """Everything one run of one case gave.

    ``configuration`` holds what the run says it ran with, read from its live objects where it can be. ``trained`` and
    ``frozen`` name the parameters, so that gradient flow can be judged. ``audits`` has one entry for every optimizer
    step that was computed again from what entered it.
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
