"""What a parity run found: the rows of the verdict and everything a report draws.

This is the bottom layer of ``case -> run -> trace -> comparison -> report``: plain data, no torch, nothing imported
from the layers above it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Status(str, Enum):
    """How one comparison ended.

    ``BLOCKED`` means that an earlier check of the same case and run failed, so this one was computed but says nothing
    about its own subject: a wrong batch makes every gradient wrong. ``NOT_APPLICABLE`` rows compare nothing: ``detail``
    says why the check has no subject in this case.
    """

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    NOT_APPLICABLE = "not applicable"


class Against(str, Enum):
    """What a row holds a run against.

    ``PROTOTYPE``: the original's own numbers, recorded or live. ``REFERENCE``: the formulas written again for reading.
    ``LIBRARY``: what an upstream library computes or writes. ``ITSELF``: the same run saved, reopened or resumed.
    """

    PROTOTYPE = "prototype"
    REFERENCE = "reference"
    LIBRARY = "library"
    ITSELF = "itself"


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, what was allowed, and how it ended.

    ``measured`` and ``allowed`` carry the unit of the quantity's tolerance (absolute, relative to the largest entry,
    a ratio, a count). ``detail`` holds the largest deviation's index and both values, or the reason; ``hint`` says
    where to look first when the row failed.
    """

    check: str
    case: str
    run: str
    quantity: str
    tensor: str
    measured: float | None
    allowed: float | None
    status: Status
    detail: str = ""
    hint: str = ""
    against: Against = Against.PROTOTYPE

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "status": self.status.value, "against": self.against.value, "passed": self.passed}


@dataclass(frozen=True)
class Skip:
    """A check that did not run, why, and what the user can do to run it."""

    check: str
    case: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Curve:
    """One scalar per micro-batch of one run: ``quantity`` is loss, grad_norm, lr or accuracy."""

    case: str
    run: str
    quantity: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class GradientFlow:
    """One parameter of one run: its gradient's size and how far it moved over the run."""

    case: str
    run: str
    parameter: str
    trainable: bool
    grad_max: float | None
    moved: float


@dataclass(frozen=True)
class Speed:
    """Throughput of two sides measured alternately: seconds per optimizer step, one entry a round; the best counts.

    ``ratio`` and ``interval`` are prototype seconds over port seconds: above 1 the port is the faster one. ``tokens``
    and the FLOPs are those of one optimizer step.
    """

    case: str
    prototype: str
    port: str
    prototype_seconds: tuple[float, ...]
    port_seconds: tuple[float, ...]
    prototype_flops: int
    port_flops: int
    ratio: float
    interval: tuple[float, float]
    tokens: int


@dataclass(frozen=True)
class Deviation:
    """A known place where a prototype departs from what its paper, Speculators or a reader would expect."""

    id: str
    where: str
    effect: str
    choice: str
    test: str


@dataclass
class Report:
    """Everything one ``parity run`` has to say.

    ``baseline`` is the run that the others were compared with; curves and gradient flow of that name are drawn as such.
    """

    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    gradient_flow: list[GradientFlow] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    deviations: list[Deviation] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    baseline: str = "prototype"

    @property
    def passed(self) -> bool:
        """True when something was compared and nothing failed or was blocked."""
        compared = [row for row in self.rows if row.status is not Status.NOT_APPLICABLE]
        return bool(compared) and all(row.passed for row in compared)
