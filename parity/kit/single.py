"""Single step: every module of the port on the original's own inputs, so that errors do not travel.

Each module runs alone, forward and backward, from the inputs that the original recorded and from one and the same
gradient of its output. A container that fails together with a module inside it is blocked, not found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from parity.compare import Subject, compare_groups, compare_named
from parity.environment import describe, deterministic
from parity.kit.alone import Alone, Arguments, alone, fitted
from parity.kit.calls import compare_calls
from parity.kit.locate import Finding
from parity.kit.names import WHOLE, NameMap, as_map, below
from parity.kit.nested import first_of
from parity.kit.report import KitReport
from parity.kit.saving import refused
from parity.kit.side import Batch, Side
from parity.kit.tolerances import Tolerances, table_for
from parity.kit.tracing import dtype_of, original_weights, start
from parity.kit.training import Training
from parity.kit.watch import Call, watch
from parity.verdict import Report, Row, Skip, Status

Adapt = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]


def single_step(
    original: Side,
    port: Side,
    batch: Batch,
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    seed: int = 0,
    tolerances: Tolerances | None = None,
    adapt: Mapping[str, Adapt] | None = None,
) -> KitReport:
    """Judge every mapped module of the port alone.

    Arguments go over by name, the first tensor by place; what the port's ``forward`` does not take is left out, which a
    note says. ``adapt`` gives, by the port's module name, a function from the original's ``(args, kwargs)`` to the
    port's. A module that cannot be called this way is a skip with the reason.
    """
    names, adapt = as_map(names), adapt or {}
    case = port.name or "port"
    with deterministic(seed):
        whole, ported = start(original), start(port, original_weights(original, names, seed))
        judge = _Judge(names, table_for(dtype_of(ported), tolerances), case, whole, ported, adapt)
        for call in _recorded(original, whole, batch, seed):
            judge.judge(call)
        judge.report.environment = describe(seed)
    report = judge.report
    report.baseline, report.rows = original.name or "original", _outermost_blocked(report.rows)
    return KitReport(report, _first(report.rows))


def _recorded(side: Side, module: nn.Module, batch: Batch, seed: int) -> list[Call]:
    set_seed(seed)
    with watch(module, arguments=True) as calls:
        Training(side, module).loss(batch)
    return calls


class _Judge:
    """Calls every module of the port by itself and holds it against the original's."""

    def __init__(
        self,
        names: NameMap,
        table: Tolerances,
        case: str,
        whole: nn.Module,
        ported: nn.Module,
        adapt: Mapping[str, Adapt],
    ) -> None:
        self.names, self.table, self.case, self.whole, self.adapt = names, table, case, whole, adapt
        self.parts = {name or WHOLE: part for name, part in ported.named_modules()}
        self.report = Report()

    def judge(self, call: Call) -> None:
        """Rows of one call, or a skip that says why there are none."""
        name = self.names.to_port(call.module)
        if name is None or name not in self.parts or call.arguments is None:
            return
        own = self.whole.get_submodule("" if call.module == WHOLE else call.module)
        key = f"{name}#{call.number}"
        try:
            given = self._arguments(name, own, call.arguments, key)
        except TypeError as error:
            remedy = f"adapt={{{name!r}: ...}}, a function from (args, kwargs) to those that its forward takes"
            self.report.skips.append(Skip("single_step", key, str(error), remedy))
            return
        subject, expected = Subject("single_step", self.case, name), alone(own, call.arguments, name, call.number)
        try:
            found = alone(self.parts[name], given, name, call.number)
        except Exception as error:  # whatever the user's module raises
            self.report.rows.append(replace(refused(subject, error), tensor=key))
            return
        self.report.rows += _rows(subject, self.names, call.module, expected, found, self.table)

    def _arguments(self, name: str, own: nn.Module, arguments: Arguments, key: str) -> Arguments:
        if name in self.adapt:
            return self.adapt[name](*arguments)
        given, dropped = fitted(self.parts[name], own, arguments)
        if dropped:
            self.report.notes.append(f"{key}: its forward does not take {', '.join(dropped)}")
        return given


def _rows(
    subject: Subject, names: NameMap, original: str, expected: Alone, found: Alone, table: Tolerances
) -> list[Row]:
    """Outputs, the gradient of the first input, the gradients of the module's parameters."""
    rows = compare_calls(subject, expected.call, found.call, table["out"])
    mine, theirs = first_of(expected.call.into_grad), first_of(found.call.into_grad)
    if mine is not None:
        rows.append(compare_named(subject, "grad", f"{expected.call.key}.input", mine, theirs, table["grad"]))
    prefix = "" if original == WHOLE else f"{original}."
    mapped = names.parameters({f"{prefix}{name}": grad for name, grad in expected.gradients.items()})
    inside = "" if subject.run == WHOLE else f"{subject.run}."
    own = {f"{inside}{name}": grad for name, grad in found.gradients.items() if names.expected_of(f"{inside}{name}")}
    return rows + (compare_groups(subject, "grad", mapped, own, table["grad"]) if mapped or own else [])


def _outermost_blocked(rows: list[Row]) -> list[Row]:
    """A module around one that fails is not judged."""
    failing = list(dict.fromkeys(row.run for row in rows if row.status is Status.FAILED))
    return [_blocked(row, failing) for row in rows]


def _blocked(row: Row, failing: Sequence[str]) -> Row:
    inside = [name for name in failing if name != row.run and (row.run == WHOLE or below(name, row.run))]
    if row.passed or not inside:
        return row
    return replace(row, status=Status.BLOCKED, detail=f"follows from {inside[0]}. {row.detail}")


def _first(rows: Sequence[Row]) -> Finding | None:
    row = next((row for row in rows if row.status is Status.FAILED), None)
    if row is None:
        return None
    direction = "backward" if row.quantity == "grad" else "forward"
    number = row.tensor.partition("#")[2].partition(".")[0]
    detail = ": ".join(filter(None, (row.tensor, row.detail)))
    return Finding("single_step", direction, row.run, int(number) if number.isdecimal() else 0, detail)
