"""Single step: every module of the port on the original's own inputs, so that errors do not travel.

Each module is a pair of its own: it runs alone, forward and backward, from the inputs that the original recorded and
from one and the same gradient of its output. A container that fails together with a module inside it is blocked, not
found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import (
    WHOLE,
    Call,
    by_name,
    first_of,
    lone,
    open_ended,
    part_of,
    snapshot,
    tensors_of,
    watch,
    with_tensors,
)
from parity.checks import check_forward
from parity.environment import describe, deterministic
from parity.evidence import Check, Evidence
from parity.locate import Finding, inside_of
from parity.names import NameMap, as_map
from parity.pair import Options, Pair
from parity.run import KitReport, run_pair
from parity.side import Batch, Case, Side, original_weights, start
from parity.tolerances import Tolerances
from parity.verdict import Report, Row, Skip, Status

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Adapt = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]

INPUT = "(input)"
"""The parameter that stands for a module's first input, so that its gradient is one like any other."""

ORIGINAL = "(original)"
"""What the original's side of a module is called."""


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
    names = as_map(names)
    with deterministic(seed):
        whole, ported = start(original), start(port, original_weights(original, names, seed))
        set_seed(seed)
        with watch(whole, arguments=True) as calls, torch.set_grad_enabled(backward):
            original.loss(whole, batch)
        report = Report(environment=describe(seed), baseline=original.name or "original")
    keys, known = names.call_keys([call.key for call in calls]), {part or WHOLE for part, _ in ported.named_modules()}
    firsts: list[Finding] = []
    for call in (call for call in calls if keys.get(call.key, "").rpartition("#")[0] in known):
        key, name = keys[call.key], keys[call.key].rpartition("#")[0]
        own, part = part_of(whole, call.module), part_of(ported, name)
        try:
            given = _arguments(report, name, call, own, part, names, adapt or {})
        except Exception as error:  # of an adapter, or where the port requires something else
            report.skips.append(_skip(key, name, str(error)))
            continue
        pair = Pair(
            name=name,
            original=alone(own, call.module, call.arguments, ORIGINAL),
            port=alone(part, name, given, name),
            cases=[Case(port.name or "port", [None], steps=1)],
            names=_only(names, call.module, name),
            tolerances=tolerances or {},
            checks=(OUTPUTS,),
            copy_weights=False,
        )
        firsts += _judged(report, pair, key, backward)
    failing = dict.fromkeys(row.run for row in report.rows if row.status is Status.FAILED)
    causes = {name: next((one for one in failing if inside_of(one, name)), None) for name in failing}
    report.rows = [row.following(cause) if (cause := causes.get(row.run)) else row for row in report.rows]
    return KitReport(report, next(iter(firsts), None))


def _outputs(evidence: Evidence) -> list[Row]:
    """The module's own outputs, those of what it calls are judged by themselves."""
    rows = check_forward(evidence)
    return [row for row in rows if row.quantity == "out" and row.tensor.partition("#")[0] == evidence.found.run]


OUTPUTS = Check("forward", _outputs)


def alone(part: nn.Module, name: str, arguments: Arguments | None, called: str) -> Side:
    """One module by itself on copies of its arguments, under its full name; nothing steps."""
    lead = first_of(tensors_of(arguments))

    def build() -> nn.Module:
        root = part
        for word in reversed(name.split(".") if name != WHOLE else ()):
            around = nn.Module()
            around.add_module(word, root)
            root = around
        if lead is not None and lead.is_floating_point():
            root.register_parameter(INPUT, nn.Parameter(lead.detach().clone()))
        root.zero_grad()
        return root

    def loss(root: nn.Module, _: Batch) -> Tensor:
        given, own = snapshot(arguments), dict(root.named_parameters(recurse=False)).get(INPUT)
        first = first_of(tensors_of(given))
        args, kwargs = with_tensors(given, lambda one: own if one is first and own is not None else one)
        return _weighted(tensors_of(lone(part(*args, **kwargs))))

    return Side(build, loss, optimizer=cast(Any, lambda parameters: None), name=called)


def _weighted(outputs: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose gradient in the outputs is the same for both sides and differs from entry to entry."""
    values = [value for value in outputs.values() if value.requires_grad]
    patterns = [torch.arange(one.numel(), dtype=torch.float64).cos().reshape(one.shape).to(one) for one in values]
    return sum(((value * pattern).sum() for value, pattern in zip(values, patterns)), torch.zeros(()))


def _judged(report: Report, pair: Pair, key: str, backward: bool, note: str = "") -> list[Finding]:
    """Put the rows of a module and a note into the report, or a skip that says why there are none; the first place."""
    original, port = (replace(cast(Side, side), backward=backward) for side in (pair.original, pair.port))
    found = run_pair(replace(pair, original=original, port=port), Options(checks=("forward", "gradients")))
    refused = next((row.detail for row in found.rows if row.run == ORIGINAL), "")
    if refused and backward:
        return _judged(report, pair, key, False, f"{key}: outputs alone, the original has no backward here: {refused}")
    if refused:
        report.skips.append(_skip(key, pair.name, refused))
        return []
    report.notes += [note] * bool(note)
    report.rows += [replace(row, check="single_step", tensor=_named(row, key)) for row in found.rows if row.compared]
    first, number = found.first, int(key.rpartition("#")[2])
    return [replace(first, check="single_step", call=number)] if first else []


def _named(row: Row, key: str) -> str:
    """``attention#1.input``, ``attention#1``, ``attention.wq.weight``."""
    name = row.tensor.removeprefix("mb0.grad.")
    return f"{key}.input" if name == INPUT else key + name.partition("#0")[2] if row.quantity != "grad" else name


def _only(names: NameMap, original: str, port: str) -> NameMap:
    """The map for one call: the module goes to the port's, whatever else the map of calls has there."""
    prefixes = dict(names.prefixes)
    if names.to_port(original) != port:
        prefixes = {**{name: target for name, target in prefixes.items() if target != port}, original: port}
    inside = {key: target for key, target in names.calls.items() if key[0] != original}
    calls = {"{}#{}".format(*key): target and "{}#{}".format(*target) for key, target in inside.items()}
    return NameMap(
        {**prefixes, INPUT: INPUT}, names.fused.values(), names.only_port, names.replicated, calls, names.arguments
    )


def _skip(key: str, name: str, reason: str) -> Skip:
    remedy = f"adapt={{{name!r}: ...}}, a function from (args, kwargs) to those that its forward takes"
    return Skip("single_step", key, reason, remedy)


def _arguments(
    report: Report,
    name: str,
    call: Call,
    own: nn.Module,
    part: nn.Module,
    names: NameMap,
    adapt: Mapping[str, Adapt],
) -> Arguments:
    """The port's; a note says what it does not take."""
    assert call.arguments is not None
    if name in adapt:
        return adapt[name](*call.arguments)
    given, dropped = fitted(part, own, call.arguments, partial(names.argument, call.module))
    if dropped:
        report.notes.append(f"{name}#{call.number}: its forward does not take {', '.join(dropped)}")
    return given


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
