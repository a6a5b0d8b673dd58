"""Single step: every module of the port on the original's own inputs, so that errors do not travel.

Each module runs alone, forward and backward, from the inputs that the original recorded and from one and the same
gradient of its output. A container that fails together with a module inside it is blocked, not found.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import WHOLE, Call, by_name, first_of, lone, open_ended, snapshot, tensors_of, watch, with_tensors
from parity.compare import Subject, compare_groups, compare_named
from parity.environment import describe, deterministic
from parity.evidence import words_of
from parity.locate import Finding, compare_calls, inside_of, within
from parity.names import NameMap, as_map
from parity.operators import Live, with_operator
from parity.run import KitReport
from parity.side import Batch, Side, dtype_of, original_weights, start
from parity.tolerances import Tolerances, table_for
from parity.verdict import Report, Row, Skip, Status

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Adapt = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]

INPUT = "(input)"


def single_step(
    original: Side,
    port: Side,
    batch: Batch,
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    seed: int = 0,
    tolerances: Tolerances | None = None,
    adapt: Mapping[str, Adapt] | None = None,
    backward: bool = True,
) -> KitReport:
    """Judge every mapped module of the port alone.

    Arguments go over by name, the first tensor by place; what the port's ``forward`` does not take is left out, which a
    note says. ``adapt`` gives, by the port's module name, a function from the original's ``(args, kwargs)`` to the
    port's. A module that cannot be called this way is a skip with the reason. The first place names the operator too.
    Without ``backward`` outputs alone are compared; a module whose original has no backward here is held to them too.
    """
    names, case = as_map(names), port.name or "port"
    with deterministic(seed):
        whole, ported = start(original), start(port, original_weights(original, names, seed))
        table = table_for(dtype_of(ported), tolerances)
        judge = _Judge(names, table, case, whole, ported, adapt or {}, backward)
        set_seed(seed)
        with watch(whole, arguments=True) as calls, torch.set_grad_enabled(backward):
            original.loss(whole, batch)
        keys = names.call_keys([call.key for call in calls])
        for call in (call for call in calls if call.key in keys):
            judge.judge(call, keys[call.key])
        report = judge.report
        report.environment, report.baseline = describe(seed), original.name or "original"
        failing = dict.fromkeys(row.run for row in report.rows if row.status is Status.FAILED)
        causes = {name: next((one for one in failing if inside_of(one, name)), None) for name in failing}
        report.rows = [row.following(cause) if (cause := causes.get(row.run)) else row for row in report.rows]
        return KitReport(report, judge.first())


class Alone:
    """One module by itself on copies of its arguments, every floating one with a gradient of its own.

    ``call`` is what it gave, ``gradients`` are its parameters', ``refused`` says why there is no gradient.
    """

    def __init__(self, part: nn.Module, arguments: Arguments, backward: bool) -> None:
        self.part, self.backward = part, backward
        self.args, self.kwargs = with_tensors(snapshot(arguments), self._leaf)
        self.leaves = {place: one for place, one in tensors_of((self.args, self.kwargs)).items() if one.requires_grad}
        self.gradients: dict[str, Tensor] = {}
        self.refused = ""

    def _leaf(self, tensor: Tensor) -> Tensor:
        return tensor.requires_grad_(self.backward and tensor.is_floating_point())

    def outputs(self) -> dict[str, Tensor]:
        """What it gives, seeded."""
        set_seed(0)
        with torch.set_grad_enabled(self.backward):
            return tensors_of(lone(self.part(*self.args, **self.kwargs)))

    def run(self, name: str, number: int) -> Alone:
        """Forward and, as far as a gradient reaches anything, backward."""
        outputs = self.outputs()
        self.call = Call(name, number, out={place: value.detach().clone() for place, value in outputs.items()})
        parameters = {place: value for place, value in self.part.named_parameters() if value.requires_grad}
        wanted = [*self.leaves.values(), *parameters.values()]
        if not any(value.requires_grad for value in outputs.values()):
            return self
        try:
            grads = torch.autograd.grad(_weighted(outputs), wanted, allow_unused=True)
        except Exception as error:  # FlexAttention on a CPU, a function of the user's own
            self.refused = words_of(error)
            return self
        given = zip(self.leaves.items(), grads)
        self.call.into_grad = {place: torch.zeros_like(leaf) if g is None else g for (place, leaf), g in given}
        own = zip(parameters, grads[len(self.leaves) :])
        self.gradients = {place: grad for place, grad in own if grad is not None}
        return self

    def live(self) -> Live:
        """To be followed operator by operator."""
        lead = first_of(tensors_of((self.args, self.kwargs)))
        leaves = {INPUT: lead} if self.backward and lead is not None else {}
        return Live(self.part, lambda: _weighted(self.outputs()) if self.backward else self.outputs(), leaves)


def _weighted(outputs: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose gradient in the outputs is the same for both sides and differs from entry to entry."""
    values = [value for value in outputs.values() if value.requires_grad]
    patterns = [torch.arange(one.numel(), dtype=torch.float64).cos().reshape(one.shape).to(one) for one in values]
    return sum(((value * pattern).sum() for value, pattern in zip(values, patterns)), torch.zeros(()))


@dataclass
class _Judge:
    """Calls every module of the port by itself and holds it against the original's."""

    names: NameMap
    table: Tolerances
    case: str
    whole: nn.Module
    ported: nn.Module
    adapt: Mapping[str, Adapt]
    backward: bool
    report: Report = field(default_factory=Report)
    pairs: dict[str, tuple[Callable[[bool], Alone], Callable[[bool], Alone], NameMap]] = field(default_factory=dict)

    def judge(self, call: Call, key: str) -> None:
        """Rows of one call, or a skip that says why there are none."""
        name, _, number = key.rpartition("#")
        if name not in {part or WHOLE for part, _ in self.ported.named_modules()} or call.arguments is None:
            return
        own, part = _part(self.whole, call.module), _part(self.ported, name)
        subject = Subject("single_step", self.case, name)
        try:
            given = self._arguments(name, own, call, call.arguments)
            expected = Alone(own, call.arguments, self.backward).run(name, int(number))
        except Exception as error:  # a module of the user's own, called in another way than it was written for
            remedy = f"adapt={{{name!r}: ...}}, a function from (args, kwargs) to those that its forward takes"
            self.report.skips.append(Skip("single_step", key, str(error), remedy))
            return
        try:
            found = Alone(part, given, self.backward and not expected.refused).run(name, int(number))
        except Exception as error:  # whatever the user's module raises
            self.report.rows.append(subject.row("refused", key, None, 0.0, False, words_of(error)))
            return
        if expected.refused:
            self.report.notes.append(f"{key}: outputs alone, the original has no backward here: {expected.refused}")
        before, after = ("" if one == WHOLE else f"{one}." for one in (call.module, name))
        self.report.rows += self._rows(subject, before, after, expected, found)
        inside = self.names.rename({f"{before}{one}": one for one, _ in own.named_parameters()})
        names = NameMap({one: to.removeprefix(after) for to, one in inside.items() if to.startswith(after)})
        self.pairs[key] = partial(Alone, own, call.arguments), partial(Alone, part, given), names

    def _arguments(self, name: str, own: nn.Module, call: Call, arguments: Arguments) -> Arguments:
        if name in self.adapt:
            return self.adapt[name](*arguments)
        renamed = partial(self.names.argument, call.module)
        given, dropped = fitted(_part(self.ported, name), own, arguments, renamed)
        if dropped:
            self.report.notes.append(f"{name}#{call.number}: its forward does not take {', '.join(dropped)}")
        return given

    def _rows(self, subject: Subject, before: str, after: str, expected: Alone, found: Alone) -> list[Row]:
        """Outputs, the gradient of the first input, the gradients of the module's parameters."""
        rows, key = compare_calls(subject, expected.call, found.call, self.table["out"]), expected.call.key
        if found.refused:
            return [*rows, subject.row("refused", key, None, 0.0, False, found.refused)]
        mine, theirs = first_of(expected.call.into_grad), first_of(found.call.into_grad)
        if mine is not None:
            rows.append(compare_named(subject, "grad", f"{key}.input", mine, theirs, self.table["grad"]))
        known = {f"{after}{name}" for name, _ in found.part.named_parameters()}
        given = {f"{before}{name}": grad for name, grad in expected.gradients.items()}
        own = {f"{after}{name}": grad for name, grad in found.gradients.items()}
        mapped, own = self.names.gradients(given, own, known, after)
        own = {name: grad for name, grad in own.items() if self.names.expected_of(name)}
        return rows + (compare_groups(subject, "grad", mapped, own, self.table["grad"]) if mapped or own else [])

    def first(self) -> Finding | None:
        """The first failed row's place, with the operator where a dispatch mode can follow both sides."""
        row = next((row for row in self.report.rows if row.status is Status.FAILED), None)
        if row is None:
            return None
        direction, number = "backward" if row.quantity == "grad" else "forward", re.search(r"#(\d+)", row.tensor)
        detail = ": ".join(filter(None, (row.tensor, row.detail)))
        finding = Finding("single_step", direction, row.run, int(number[1]) if number else 0, detail)
        pair = self.pairs.get(f"{row.run}#{finding.call}")
        if pair is None or row.quantity == "refused":
            return finding
        apart = within(self.table["out" if direction == "forward" else "grad"].bound)
        sides = [make(direction == "backward").live() for make in pair[:2]]
        with contextlib.suppress(Exception):  # whatever an operator of the user's own cannot do under a mode
            whole = with_operator(replace(finding, module=WHOLE, call=0), sides[0], sides[1], apart, pair[2])
            return replace(finding, operator=whole.operator)
        return finding


def _part(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule("" if name == WHOLE else name)


def fitted(
    part: nn.Module, own: nn.Module, arguments: Arguments, renamed: Callable[[str], str] = str
) -> tuple[Arguments, list[str]]:
    """The arguments as the port's ``forward`` takes them, and the names of tensors it does not take.

    The first argument is the original's first floating tensor (else its first), whatever the names.

    Raises:
        TypeError: the port requires something that the original was not called with.
    """
    signature = inspect.signature(part.forward)
    kinds, takes = {one.kind for one in signature.parameters.values()}, signature.parameters
    if (
        part is own
        or inspect.Parameter.VAR_POSITIONAL in kinds
        or [*takes] == [*inspect.signature(own.forward).parameters]
    ):
        return arguments, []
    named = {renamed(name): value for name, value in by_name(own, *arguments).items()}
    rest, given = open_ended(signature), dict(named)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    lead, main = next(iter(takes), rest), first_of(tensors)
    if lead not in (*given, rest) and main is not None:
        given[lead] = given.pop(next(name for name, value in tensors.items() if value is main))
    given = {name: given[name] for name in (*takes, *(given if rest else ())) if name in given}
    missing = [name for name, one in takes.items() if one.default is one.empty and name not in (*given, rest)]
    if missing:
        raise TypeError(f"its forward requires {', '.join(missing)}, the original's is called with {', '.join(named)}")
    passed = [id(value) for value in given.values()]
    return ((), given), [name for name, value in named.items() if id(value) not in passed and tensors_of(value)]
