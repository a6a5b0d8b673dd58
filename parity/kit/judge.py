"""Two traces into rows: which check a tensor belongs to, and how its two values compare."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from parity.calls import CALLS, calls_of
from parity.compare import Subject, compare, compare_named
from parity.kit.curve import curve_rows
from parity.kit.tolerances import Tolerances
from parity.locate import compare_calls
from parity.names import NameMap
from parity.trace import Trace
from parity.verdict import Row

STATES = {"init": ("weights", "weights"), "after": ("optimizer_step", "after"), "final": ("curve", "final")}
PLACES = (
    (re.compile(r"mb\d+\.batch\."), "batches", "batch"),
    (re.compile(r"mb\d+\.grad\."), "gradients", "grad"),
    (re.compile(r"mb\d+\.grad_norm$"), "gradients", "grad_norm"),
    (re.compile(r"mb\d+\.path\."), "gradients", "path"),
    (re.compile(r"mb\d+(\.step\d+)?\.loss$"), "loss", "loss"),
    (re.compile(r"mb\d+\."), "forward", "out"),
)
"""Tensors of a trace that are no state and no call: check and quantity by name, the first that fits."""

MOST_UNDETERMINED = 0.02
"""A row of parameters that needs more of its entries left out than this fails all the same."""


class Judge:
    """Holds a port's trace against the original's, whose names are the port's already."""

    def __init__(self, expected: Trace, found: Trace, names: NameMap, table: Tolerances) -> None:
        self.expected, self.found, self.names, self.table = expected, found, names, table

    def rows(self, check: str) -> list[Row]:
        """All rows of one check, never none."""
        rows = [*self._plain(check), *self._states(check)]
        rows += self._calls() if check == "forward" else []
        rows += curve_rows(self._subject(check), self.expected, self.found, self.table) if check == "curve" else []
        return rows or [self._subject(check).row("comparisons", "", 0.0, None, False, "nothing compared")]

    def _subject(self, check: str) -> Subject:
        return Subject(check, self.found.case, self.found.run)

    def _plain(self, check: str) -> list[Row]:
        names = sorted({*self.expected.tensors, *self.found.tensors})
        rows = []
        for name in (name for name in names if not name.startswith(CALLS)):
            place = next(((where, quantity) for form, where, quantity in PLACES if form.match(name)), None)
            if place is not None and place[0] == check and self._counts(name):
                pair = self.expected.tensors.get(name), self.found.tensors.get(name)
                rows.append(compare_named(self._subject(check), place[1], name, *pair, self.table[place[1]]))
        return rows

    def _counts(self, name: str) -> bool:
        """Gradients of parameters that the port alone has are nobody's business."""
        _, grad, parameter = name.partition(".grad.")
        return not grad or self.names.expected_of(parameter)

    def _states(self, check: str) -> list[Row]:
        """Parameters before, after one step, and at the end; buffers where both sides save them."""
        rows = []
        for prefix, quantity in ((prefix, state[1]) for prefix, state in STATES.items() if state[0] == check):
            expected, found = self.expected.group(f"{prefix}."), self.found.group(f"{prefix}.")
            for name in sorted({*expected, *found}):
                if self._is_parameter(name) or (name in expected and name in found):
                    pair = expected.get(name), found.get(name)
                    rows.append(self._state(check, quantity, f"{prefix}.{name}", *pair))
        return rows

    def _is_parameter(self, name: str) -> bool:
        known = {*self.expected.trained, *self.expected.frozen, *self.found.trained, *self.found.frozen}
        return name in known and self.names.expected_of(name)

    def _state(self, check: str, quantity: str, name: str, expected: Tensor | None, found: Tensor | None) -> Row:
        """What only entries break whose gradient is below its own tolerance passes: Adam may step either way there."""
        subject, tolerance = self._subject(check), self.table[quantity]
        row = compare_named(subject, quantity, name, expected, found, tolerance)
        grad = self.expected.tensors.get(f"mb0.grad.{name.partition('.')[2]}")
        if row.passed or row.measured is None or grad is None or expected is None or found is None:
            return row
        clear = grad.abs() > self.table["grad"].bound * grad.abs().max()
        left_out = int((~clear).sum())
        if quantity == "weights" or not 0 < left_out <= MOST_UNDETERMINED * clear.numel():
            return row
        again = compare(subject, quantity, name, expected, found, tolerance, where=clear)
        note = f"{left_out} of {clear.numel()} entries left out: their gradient is below its own tolerance"
        return replace(again, detail=f"{note}. {again.detail}")

    def _calls(self) -> list[Row]:
        """Outputs of every module that both sides call, in the order in which the original's calls end."""
        subject, rows = self._subject("forward"), []
        found = {call.key: call for call in calls_of(self.found)}
        called = {call.module for call in found.values()}
        for call in calls_of(self.expected):
            if call.module in called:
                rows += compare_calls(subject, call, found.get(call.key), self.table["out"])
        return rows
