"""What a parity run found: the rows of the verdict and everything a report draws.

This is the bottom layer of ``pair -> sides -> traces -> comparison -> verdict -> report``: plain data, no torch,
nothing imported from the layers above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

from parity.differences import Ledger

NO_QUANTITY = "throughput"
"""The check whose rows measure something else than what the original computes."""

LABELS = {
    "round_trip": "saved",
    "resume": "resumed",
    NO_QUANTITY: NO_QUANTITY,
    "reference": "formulas",
    "speculators": "Speculators",
    "library": "library",
}
"""By check, else by what it was held against, what a verdict calls a port's checks; others by their own names."""


class Status(str, Enum):
    """How one comparison ended.

    ``BLOCKED`` means that an earlier check of the same case and run failed, so this one was computed but says nothing
    about its own subject: a wrong batch makes every gradient wrong. ``NOT_APPLICABLE`` rows compare nothing: ``detail``
    says why the check has no subject in this case. ``SILENT`` ones say nothing, since rounding moves all of what they
    compare; ``UNMOVED`` ones are of tensors that cannot move, and did not; ``GIVEN`` ones of what the harness hands to
    both sides; ``REPEATED`` ones repeat, to the bit, what has been counted. None of these four counts.
    """

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    NOT_APPLICABLE = "not applicable"
    SILENT = "says nothing"
    UNMOVED = "cannot move"
    GIVEN = "given to both sides"
    REPEATED = "counted before"


UNCOUNTED = (Status.GIVEN, Status.UNMOVED, Status.REPEATED, Status.SILENT)


class Against(str, Enum):
    """What a row holds a run against.

    ``PROTOTYPE``: the original's own numbers, recorded or live. ``REFERENCE``: the formulas written again for reading.
    ``SPECULATORS``: what Speculators computes or writes. ``LIBRARY``: another library, torch's optimizer for example.
    ``SELF_CONSISTENCY``: the same run saved, reopened or resumed.
    """

    PROTOTYPE = "prototype"
    REFERENCE = "reference"
    SPECULATORS = "speculators"
    LIBRARY = "library"
    SELF_CONSISTENCY = "self_consistency"


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, what was allowed, and how it ended.

    ``measured`` and ``allowed`` carry the unit of the quantity's tolerance (absolute, relative to the largest entry,
    a ratio, a count). ``detail`` holds the largest deviation's index and both values, or the reason; ``hint`` says
    where to look first when the row failed. ``bound`` says where what is allowed came from: ``rounding`` of the
    original, the ``table`` by dtype, the user's ``own``; empty: nothing but equality. ``bits`` is a digest of what was
    compared, of both sides. ``beside``: the run is not the port, it is held against the original beside it.
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
    bound: str = ""
    bits: str = ""
    beside: bool = False

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED

    @property
    def is_quantity(self) -> bool:
        """Does it hold what a port computed against the original's own?"""
        return self.against is Against.PROTOTYPE and not self.beside and self.check != NO_QUANTITY

    def uncounted(self, status: Status) -> Row:
        """The same row, which counts no more for this reason; what failed stays so."""
        return replace(self, status=status) if self.passed else self

    @property
    def compared(self) -> bool:
        """False where nothing could have failed: such a row counts neither as passed nor as failed."""
        return self.status in (Status.PASSED, Status.FAILED, Status.BLOCKED)

    @property
    def ratio(self) -> float | None:
        """Measured over allowed: 0 is equal, above 1 is too far. None when the row carries no numbers."""
        if self.measured is None or self.allowed is None:
            return None
        if math.isnan(self.measured) or math.isnan(self.allowed):
            return math.nan
        if self.measured == 0:
            return 0.0
        return abs(self.measured) / self.allowed if self.allowed else math.inf

    def following(self, cause: str) -> Row:
        """The same row, blocked by another failure if it failed itself."""
        if self.status is not Status.FAILED:
            return self
        return replace(self, status=Status.BLOCKED, detail=f"follows from {cause}. {self.detail}")

    def as_json(self) -> dict[str, Any]:
        """Every field, and ``passed``: None where nothing was compared."""
        passed = self.passed if self.compared else None
        return {**asdict(self), "status": self.status.value, "against": self.against.value, "passed": passed}


@dataclass(frozen=True)
class Finding:
    """The first place where two sides part: check, direction (forward, backward, ...), module, call and the numbers.

    ``operator`` is the first operator below the module, on both sides, where it was looked for.
    """

    check: str
    direction: str
    module: str
    call: int
    detail: str
    operator: str = ""

    def __str__(self) -> str:
        place = self.module + (f", call {self.call}" if self.call else "")
        way = "" if self.direction == self.check else f" ({self.direction})"
        below = f"; first operator: {self.operator}" if self.operator else ""
        return f"{self.check}{way} first goes wrong in {place}: {self.detail}{below}"


@dataclass(frozen=True)
class Skip:
    """A check that did not run, why, and what the user can do to run it."""

    check: str
    case: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Curve:
    """One scalar per micro-batch of one run: ``quantity`` is loss or grad_norm."""

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

    @property
    def fault(self) -> str:
        """What is wrong: a trained one has a finite gradient, not zero, and moves; a frozen one does neither."""
        if not self.trainable:
            if self.grad_max is not None:
                return f"frozen, but has a gradient of up to {self.grad_max:.3g}"
            return f"frozen, but moved by {self.moved:.3g}" if self.moved else ""
        if self.grad_max is None:
            return "trainable, but got no gradient: its path to the loss is cut"
        if not math.isfinite(self.grad_max):
            return f"gradient is {self.grad_max}"
        if self.grad_max == 0.0:
            return "gradient is zero everywhere"
        if not math.isfinite(self.moved):
            return "became NaN or Inf"
        return "" if self.moved > 0 else "did not move over the whole run"


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


class Sight(str, Enum):
    """What became of a planted fault.

    ``BELOW``: of its own size nothing saw it, of a larger one something did. ``NOT_PLANTABLE``: nothing of that kind
    runs, ``detail`` says what is missing.
    """

    SEEN = "seen"
    BELOW = "below rounding"
    UNSEEN = "unseen"
    NOT_PLANTABLE = "not plantable"


@dataclass(frozen=True)
class Planted:
    """One fault that was planted in a running port, and the first check that saw it.

    ``beyond`` is the largest measured / allowed of that check's failed rows, infinite where nothing is allowed, None
    where nothing is measured. ``size`` is the smallest that was seen, of those tried. ``fails``: it is unseen, and the
    pair says of no reason why it may be.
    """

    case: str
    run: str
    fault: str
    sight: Sight
    place: str = ""
    size: float = 1.0
    check: str = ""
    beyond: float | None = None
    detail: str = ""
    fails: bool = False


@dataclass(frozen=True)
class Counts:
    """What a report comes to; terminal, page and JSON take their numbers from here alone.

    ``matched`` of ``quantities`` of the original agree with a port's, each once a case and only where both came by
    ways of their own; ``closest`` is the largest measured / allowed of those that rounding may move, ``measured`` says
    whether all of these bounds are what rounding does to the original. ``checks`` are (passed, run) by what was held: a
    check of a case is one. ``uncounted`` are rows, by status.
    """

    cases: int
    matched: int
    quantities: int
    closest: float | None
    measured: bool
    seen: int
    planted: int
    checks: dict[str, tuple[int, int]]
    uncounted: dict[str, int]


@dataclass
class Report:
    """Everything one ``parity run`` has to say.

    ``baseline`` is the run that the others were compared with; curves and gradient flow of that name are drawn as such.
    ``first`` is the first place where it goes wrong.
    """

    rows: list[Row] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    gradient_flow: list[GradientFlow] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    planted: list[Planted] = field(default_factory=list)
    deviations: list[Deviation] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    baseline: str = "prototype"
    first: Finding | None = None

    def join(self, part: Report) -> None:
        """Put another report at the end of this one; notes and deviations that both have are said once."""
        self.add(part.rows)
        for name in ("skips", "curves", "gradient_flow", "speeds", "ledgers", "planted", "deviations", "notes"):
            known = getattr(self, name)
            known += [one for one in getattr(part, name) if name not in ("notes", "deviations") or one not in known]
        self.environment.update(part.environment)
        self.first = self.first or part.first

    def add(self, rows: Iterable[Row]) -> None:
        """Further rows, in which what an earlier one compared to the bit, under the same name, counts no more."""
        known = {_computed(row) for row in self.rows}
        for row in rows:
            again = row.bits and row.against is not Against.SELF_CONSISTENCY and _computed(row) in known
            self.rows.append(row.uncounted(Status.REPEATED) if again else row)
            known.add(_computed(row))

    def counts(self) -> Counts:
        """Of all rows and planted faults."""
        compared = [row for row in self.rows if row.compared]
        quantities = [row for row in compared if row.is_quantity]
        bounded = [row.ratio for row in quantities if row.bound and row.ratio is not None]
        held: dict[str, dict[tuple[str, str, str], bool]] = {}
        for row in (row for row in compared if not row.is_quantity):
            ended, key = held.setdefault(_label(row), {}), (row.run, row.case, row.check)
            ended[key] = ended.get(key, True) and row.passed
        planted = [one.sight for one in self.planted if one.sight is not Sight.NOT_PLANTABLE]
        return Counts(
            cases=len({row.case for row in quantities}),
            matched=sum(row.passed for row in quantities),
            quantities=len(quantities),
            closest=max(bounded, key=lambda ratio: math.inf if math.isnan(ratio) else ratio, default=None),
            measured={row.bound for row in quantities} <= {"", "rounding"},
            seen=planted.count(Sight.SEEN),
            planted=len(planted),
            checks={word: (sum(ended.values()), len(ended)) for word, ended in held.items()},
            uncounted={one.value: n for one in UNCOUNTED if (n := sum(row.status is one for row in self.rows))},
        )

    @property
    def passed(self) -> bool:
        """True when something was compared, nothing failed or was blocked, and no planted fault went unseen."""
        compared = [row.passed for row in self.rows if row.compared]
        return bool(compared) and all(compared) and not any(one.fails for one in self.planted)

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed by their own fault, in order."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.status is Status.FAILED))

    def verdict_line(self) -> str:
        """``PASS: 2 cases; 40 quantities of the prototype matched, the closest at 0.4 of what ...; saved 2 of 2``."""
        found = self.counts()
        told = [] if any(row.compared for row in self.rows) else ["Nothing was compared, so nothing was shown"]
        if found.quantities:
            told.append(f"{found.cases} case{'' if found.cases == 1 else 's'}")
            whose = "the " * (self.baseline in ("prototype", "original")) + self.baseline
            told.append(f"{_matched(found)} of {whose} matched{_closest(found)}")
        if found.planted:
            told.append(f"{found.seen} of {found.planted} planted faults would have been seen")
        told += [f"{word} {passed} of {run}" for word, (passed, run) in found.checks.items()]
        if silent := found.uncounted.get(Status.SILENT.value):
            told.append(f"{silent} within rounding, which say nothing")
        return f"{'PASS' if self.passed else 'FAIL'}: " + "; ".join(told)


def _computed(row: Row) -> tuple[str, ...]:
    """What a row is of, whatever the case."""
    return row.run, row.against.value, row.check, row.quantity, row.tensor, row.bits


def _label(row: Row) -> str:
    """What a verdict calls a check that is no quantity: by itself, by what it was held against, or by another run."""
    return row.run if row.beside else LABELS.get(row.check) or LABELS.get(row.against.value, row.check)


def _matched(found: Counts) -> str:
    count = f"{found.matched} of " if found.matched < found.quantities else ""
    return f"{count}{found.quantities} {'quantity' if found.quantities == 1 else 'quantities'}"


def _closest(found: Counts) -> str:
    if found.closest is None:
        return ""
    whose = "what its own rounding allows" if found.measured else "what is allowed"
    word = "closest" if found.closest <= 1 else "furthest"
    return f", the {word} at {found.closest:.2g} of {whose}"
