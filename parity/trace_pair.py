"""What a check looks at, and what a check is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch

from parity.allowed import DRAWN, FEW, MARGIN, SAYS_NOTHING, TIMES, Size, Spread, pool_of, precision_of, size_of
from parity.compare import RowKey, View
from parity.differences import RAISED
from parity.errors import place_of
from parity.names import NameMap
from parity.side import Rerunnable
from parity.tolerances import HELD, UNITS, Kind, Tolerance, Tolerances, by_dtype
from parity.trace import Trace
from parity.verdict import Against, Row, Speed, Status


@dataclass
class TracePair:
    """Two traces of one case under the port's names, and what the checks beyond them need.

    ``original`` and ``alive`` are the two sides as they can be run again, or None; ``left`` is what the found side's
    run left behind, of a pair's own kind. ``reference`` gives, when it is asked for, what the original's trace lacks,
    in the shared coordinates: the formulas run again, where a pair has them.
    ``own`` are a user's tolerances, ``measure_spread`` gives the original's spread, empty where nobody can move it;
    ``measure_more`` that of stage 0, 1, ... of more draws, None where there are no more.
    ``calls`` are the original's by its own names, ``aligned`` brings a further trace of it into the shared coordinates,
    which ``views`` lead to. ``speeds`` is filled by checks that measure any. ``handed`` are the names of rows on what
    the harness itself hands to both sides. ``beside``: the found side is not the port.
    """

    case: Any
    expected: Trace
    found: Trace
    own: Tolerances = field(default_factory=dict)
    measure_spread: Callable[[], Spread] = dict
    measure_more: Callable[[int], Spread | None] = lambda stage: None
    stage: int = 0
    alive: Rerunnable | None = None
    original: Rerunnable | None = None
    left: Any = None
    names: NameMap = field(default_factory=NameMap)
    reference: Callable[[], Trace] | None = None
    not_applicable: dict[str, str | Callable[[TracePair], str | None]] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    calls: Sequence[str] = ()
    views: Sequence[View] = ()
    aligned: Callable[[Trace], Trace] = lambda trace: trace
    handed: Collection[str] = ()
    beside: bool = False

    def subject(self, check: str, against: Against = Against.PROTOTYPE) -> RowKey:
        return RowKey(check, self.found.case, self.found.run, against)

    @cached_property
    def spread(self) -> Spread:
        """What one rounding does to the original."""
        return self.measure_spread()

    def widen(self) -> bool:
        """Take bounds from more draws from now on; False where there are none."""
        found = self.measure_more(self.stage)
        if found is None:
            return False
        self.stage += 1
        self.measure_spread, self.__dict__["spread"] = (lambda: found), found
        return True

    @property
    def drawn(self) -> Size:
        """How often the original was moved, and turned."""
        return size_of(*self.spread.get(DRAWN, (0.0,)))

    def tolerance(self, quantity: str) -> Tolerance:
        """A user's own, else what holds whatever the original computes, else the table's."""
        if quantity in self.own:
            return self.own[quantity]
        known = quantity if quantity in UNITS else "out"
        return HELD[quantity] if quantity in HELD else by_dtype(known, str(precision_of(self.expected))[6:])

    def allowed(self, quantity: str, name: str, dtype: torch.dtype = torch.float32) -> Tolerance:
        """The bound on a tensor: ``TIMES`` what one rounding does, and a few units of its ``dtype`` at least."""
        pool = name if name in self.spread else pool_of(name)
        if quantity in self.own or quantity in HELD or pool not in self.spread:
            return self.tolerance(quantity)
        size = size_of(self.spread[pool][0])
        if not size.says:
            return Tolerance(Kind.RMS, SAYS_NOTHING, NO_LONGER, "rounding")
        return Tolerance(Kind.RMS, max(size.bound, self.few(dtype)), reason_of(size), "rounding")

    def few(self, dtype: torch.dtype) -> float:
        """A few units of a quantity's own dtype, or of what it was computed in if that is wider than float32."""
        eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
        wide = precision_of(self.expected) == torch.float64
        return FEW * max(eps, torch.finfo(torch.float64 if wide else torch.float32).eps)

    def grown(self, quantity: str, name: str, count: int) -> tuple[list[float], Tolerance]:
        """The bound on each of so many points of a series, and the last of them as a tolerance."""
        spread = self.spread.get(f"curve.{name}")
        if spread is None or quantity in self.own:
            table = self.tolerance(quantity)
            return [table.bound] * count, table
        sizes = [size_of(size) for size in [*spread, *[spread[-1]] * count][:count]]
        said = sum(1 for _ in takewhile(lambda size: size.says, sizes))
        bounds = [max(size.bound, self.few(torch.float32)) for size in sizes[:said]]
        reason = f"{reason_of(sizes[-1])}, to which it grows" + f"; from ({said},) on {NO_LONGER}" * (said < count)
        bounds += [SAYS_NOTHING] * (count - said)
        return bounds, Tolerance(Kind.RELATIVE, bounds[-1], reason, "rounding")

    @property
    def traces(self) -> tuple[Trace, Trace]:
        return self.expected, self.found

    def micro_batches(self) -> list[int]:
        """Those of the original's first optimizer step; at least one is asked for."""
        return self.expected.micro_batches() or [0]

    def trained_by_original(self) -> set[str]:
        """Parameters that the original says it trains, or that its trace shows to: they have a gradient or moved."""
        if self.expected.trained:
            return set(self.expected.trained)
        start = self.expected.group("init.")
        end = {**self.expected.group("after."), **self.expected.group("final.")}
        moved = {name for name in end if name in start and not torch.equal(start[name].to(end[name].dtype), end[name])}
        grads = self.expected.group(f"mb{self.micro_batches()[-1]}.grad.")
        return moved | {name for name, grad in grads.items() if bool(grad.any())}

    def tied_to(self, name: str) -> str:
        """The trained parameter that a state of the original is one with, before and after; its own name if none is."""
        states = [self.expected.group(f"{group}.") for group in ("init", "after", "final")]
        held = [state[name] for state in states if name in state]
        trained = self.trained_by_original()

        def one_with(other: str) -> bool:
            theirs = [state[other] for state in states if other in state]
            alike = len(held) == len(theirs) > 1 and {one.dtype for one in held} == {one.dtype for one in theirs}
            return alike and all(map(torch.equal, held, theirs)) and not torch.equal(held[0], held[-1])

        return name if name in trained else next(filter(one_with, sorted(trained)), name)

    def wanted(self, tensors: Iterable[str]) -> set[str]:
        """Names of the found side that the original must have: all but those it says nothing of or has no part in."""
        silent = not (self.expected.trained or self.expected.frozen)
        left = set(self.found.frozen) if silent else set()
        return {name for name in tensors if self.names.expected_of(name) and name not in left}


NO_LONGER = "it no longer says anything: rounding reaches half of what twice the rate does"


def reason_of(size: Size) -> str:
    """What a bound is made of."""
    if MARGIN * size.most > TIMES * size.rms:
        return f"{MARGIN:g} times the most that a draw did, {size.most:.1e}"
    return f"{TIMES:g} times one rounding, {size.rms:.1e}"


@dataclass(frozen=True)
class Check:
    """A named comparison.

    ``follows`` names the checks whose failure explains a failure here, and with them what those follow.
    ``inapplicable`` says why the check has no subject in a piece of evidence, or returns None. ``against`` is what its
    rows are held against where they do not say.
    """

    name: str
    run: Callable[[TracePair], list[Row]]
    follows: tuple[str, ...] = ()
    inapplicable: Callable[[TracePair], str | None] = lambda evidence: None
    against: Against = Against.PROTOTYPE

    def reason(self, evidence: TracePair) -> str | None:
        """Why there is nothing to compare: what the pair says, then what the evidence shows."""
        said = evidence.not_applicable.get(self.name)
        told = said(evidence) if callable(said) else said
        return told or self.inapplicable(evidence)


def raised(subject: RowKey, error: BaseException) -> Row:
    """The row of an exception: its text, and the last place that is the user's."""
    said = f"{type(error).__name__}: {str(error)[:300]}"
    return subject.failed(RAISED, "", f"{said} at {place_of(error)}")


def explained(rows: Iterable[Row], follows: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """The rows, those that failed downstream of another check's failure blocked.

    ``follows`` has for every check, in their order, those whose failure explains a failure of it.
    """
    rows = list(rows)
    failed = {row.check for row in rows if row.status is Status.FAILED}
    causes: dict[str, str] = {}
    for check, parents in follows.items():
        found = (causes.get(parent, parent) for parent in parents if parent in failed or parent in causes)
        if cause := next(found, None):
            causes[check] = cause
    return [row.following(causes[row.check]) if row.check in causes else row for row in rows]
