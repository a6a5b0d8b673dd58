"""The power of a verdict: faults planted in the running port one at a time, and what each check makes of them.

What a pair is asked stays what it is: the same original, the same checks, the same bounds. Only the port has a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from inspect import unwrap
from typing import Any

from parity.batch_faults import of_batches
from parity.calls import equal_tensors
from parity.case import STEPS
from parity.checks import CHECKS, ON_REQUEST, run_check
from parity.compare import RowKey
from parity.faults import GENERIC, SOUND, in_field, inside, of_buffers
from parity.pair import EVERYTHING, Options, Pair, matches
from parity.plants import Fault, Ground
from parity.run import SILENT, CaseRun, KitReport, Progress, leaves_out, run_pair
from parity.side import Side
from parity.study import KnownDifference, ReplacedFunctions, switched
from parity.trace import Trace
from parity.trace_pair import Check, TracePair, raised
from parity.verdict import Planted, Row, Sight, Skip, Status

BUFFERS = 4
"""Names of buffers, at most, of which each gets a fault."""

ONE_RUN = {check.name for check in CHECKS} - {"round_trip", "resume", *ON_REQUEST}
"""Checks that look at one run of a port: the others open or run it again, and are asked for faults of their own."""

OF_THE_ORIGINAL = ("modules",)
"""Checks that run the original again; for the others no fault is a reason to."""

FORWARD_ONLY = "the port's process only runs a model forward"


def run_with_power(pair: Pair, options: Options = EVERYTHING, progress: Progress = SILENT) -> KitReport:
    """:func:`parity.run_pair`, and besides every fault planted in the port of its shortest cases.

    Raises:
        InputError: as there.
    """
    result = run_pair(pair, options, progress)
    short = (pair.short or shortest)(pair.at(options.original, options.recordings))
    for case in (case for case in short.find_cases(options.recordings) if matches(options.keyword, case.name)):
        with CaseRun(short, case) as case_run:
            found = Battery(case_run, progress).run()
        if isinstance(found, Skip):
            result.skips.append(found)
        else:
            result.planted += found
    return result


def shortest(pair: Pair) -> Pair:
    """Its first case, of five steps where both sides are run; a recorded one is as long as it is."""
    cases = pair.find_cases(None)[:1]
    if isinstance(pair.original, Side) and isinstance(pair.port, Side):
        cases = [replace(case, steps=STEPS) for case in cases]
    return replace(pair, cases=cases)


class Battery:
    """All faults of one case of a pair, whose original runs once."""

    def __init__(self, case_run: CaseRun, progress: Progress = SILENT) -> None:
        self.case_run, self.progress = case_run, progress
        self.pair, self.case = case_run.pair, case_run.case

    def run(self) -> list[Planted] | Skip:
        """Every fault; or why none was planted."""
        name, port = self.case.name or "case", self.pair.port
        if reason := leaves_out(port, self.case):
            return Skip("power", name, reason, "another case")
        if not hasattr(port, "planted"):
            reason = f"not plantable: {port.name or 'the port'} does not run in this process"
            return Skip("power", name, reason, "a Side of callables")
        sound = Ground()
        if wrong := self._rows(SOUND, 1.0, sound):
            return Skip("power", name, f"without a fault {wrong[0].check} fails: {wrong[0].detail}", "mend it first")
        return [self.plant(fault, sound) for fault in self.faults(sound)]

    def faults(self, sound: Ground) -> Iterator[Fault]:
        """Of any port, its buffers and batches, those that the pair declares, and those inside of known differences."""
        yield from GENERIC
        yield from of_buffers(dict([*sound.buffers.items()][:BUFFERS]))
        yield from of_batches(self.pair.batch_keys)
        yield from self.pair.faults
        for difference in self.pair.known_differences:
            yield from in_known_difference(self.pair.port, difference)

    def plant(self, fault: Fault, sound: Ground) -> Planted:
        """One fault, of its own size; if that is not seen, of those from which on it may be."""
        if getattr(self.pair.port, "forward_only", False) and fault in GENERIC and not fault.forward:
            return self._planted(fault, Sight.NOT_PLANTABLE, sound, fault.sizes[0], detail=FORWARD_ONLY)
        self.progress(f"{self.case.name}: {fault.name}")
        for size in fault.sizes:
            ground = Ground(sound.called, buffers=sound.buffers)
            rows = self._rows(fault, size, ground)
            if rows:
                return self._planted(fault, Sight.SEEN if size == fault.sizes[0] else Sight.BELOW, ground, size, rows)
            if not ground.place:
                missed = Sight.UNSEEN if fault.hidden else Sight.NOT_PLANTABLE
                return self._planted(fault, missed, ground, size, detail=fault.otherwise)
        if fault.idle and alike(sound.found, ground.found):
            return self._planted(fault, Sight.NOT_PLANTABLE, ground, size, detail=fault.idle)
        return self._planted(fault, Sight.UNSEEN, ground, fault.sizes[0])

    def asked(self, fault: Fault) -> list[Check]:
        """The checks that are to see it."""
        held = getattr(self.pair.port, "checks", None) or ONE_RUN
        names = {fault.named_by} if fault.named_by else held
        return [check for check in self.pair.every_check if check.name in names]

    def _rows(self, fault: Fault, size: float, ground: Ground) -> list[Row]:
        """What fails of the port with a fault; what it raises then, also a refusal of its own, is a failed row."""
        ground.fault, ground.size = fault.name, size
        try:
            with fault.plant(ground, size):
                side = switched(ground.of_port(self.pair.port), self.pair.known_differences).planted(ground)
                with self.case_run.open_evidence(side) as evidence:
                    ground.found = evidence.found
                    return first_seen(evidence, self.asked(fault))
        except Exception as error:  # whatever the code of a side raises
            return [raised(RowKey.of_side(self.case.name, self.pair.port.name or "port"), error)]

    def _planted(
        self, fault: Fault, sight: Sight, ground: Ground, size: float, rows: Sequence[Row] = (), detail: str = ""
    ) -> Planted:
        known = self.pair.unseen
        said = (known or {}).get(fault.name) if sight is Sight.UNSEEN else None
        excuse = said(self.case) if callable(said) else said
        ratios = [row.ratio for row in rows if row.ratio is not None]
        return Planted(
            case=self.case.name or self.pair.name,
            run=self.pair.port.name or "port",
            fault=fault.name,
            sight=sight,
            place=ground.place,
            size=size,
            check=rows[0].check if rows else "",
            beyond=max(ratios, key=lambda ratio: math.inf if math.isnan(ratio) else ratio, default=None),
            detail=excuse or detail or (rows[0].detail if rows else ""),
            fails=sight is Sight.UNSEEN and known is not None and not excuse,
        )


def alike(*sides: Trace | None) -> bool:
    """Did two runs compute the same, to the bit?"""
    mine, theirs = (side.tensors if side else {} for side in sides)
    return bool(mine) and equal_tensors(mine, theirs)


def first_seen(evidence: TracePair, checks: Iterable[Check]) -> list[Row]:
    """The failed rows of the first check that has any; no later one is asked."""
    alone = replace(evidence, original=None)
    sides = ((evidence if check.name in OF_THE_ORIGINAL else alone, check) for check in checks)
    found = ([row for row in run_check(*asked) if row.status is Status.FAILED] for asked in sides)
    return next(filter(None, found), [])


def in_known_difference(port: Any, difference: KnownDifference) -> Iterator[Fault]:
    """Faults inside of what a known difference replaces: functions, or what the port's side itself steps with."""
    why = "what the known difference puts in its place never calls it"
    if isinstance(difference.patch, ReplacedFunctions):
        for target in difference.patch.functions:
            name = f"inside {target.replace(':', '.').rpartition('.')[2]}, under known difference {difference.id}"
            yield Fault(name, inside(target), hidden=True, otherwise=why)
    elif isinstance(port, Side):
        other = difference.patch(port)
        for field in ("loss", "optimizer", "schedule", "step"):
            own, new = getattr(port, field), getattr(other, field)
            if own is not None and unwrap(new) is not unwrap(own):
                name = f"inside the port's {field}, under known difference {difference.id}"
                yield Fault(name, in_field(field), hidden=True, otherwise=why)
