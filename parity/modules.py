"""Half precision, module by module: what each gives for what the port's was given, beside what would be exact.

What is apart in all the modules before one adds up until, in half precision, the bound on what it gives says little. So
the original's first forward is made again, in its own precision and in a wide one, and every module of it is handed the
inputs of the port's same module. What is apart now was made since. The port may be as far from exact as the original
is, with a factor, which is how FlashAttention's tests judge its kernels; and it must not lean to one side, which is how
a wrong constant shows below the rounding of single numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from parity.allowed import precision_of, relative, without_endless
from parity.calls import CALLS, WHOLE, Call, by_name, calls_of, dotted, dtype_of, first_of, tensors_of, with_tensors
from parity.compare import RowKey, bits_of
from parity.environment import deterministic
from parity.locate import paired, paired_inputs
from parity.names import NameMap
from parity.observe import drawing, observe
from parity.side import Rerunnable, fresh_module
from parity.trace import Trace
from parity.trace_pair import TracePair
from parity.verdict import Row

FACTOR = 2.0
"""How far from exact the port may be, of what the original is: FlashAttention's tests allow its kernels the same."""

LEAN = 1 / 16
"""Of a unit in the last place: how far all entries together may lean to one side, beyond chance and the original."""

CHANCE = 4.0
"""Standard errors of that, were every entry rounded for itself."""

Given = Mapping[str, Mapping[str, Tensor]]
"""By the original's calls, floating-point inputs of the port's same calls, by their names in the port."""


def half_precision(trace: Trace) -> bool:
    """Is it what is computed in?"""
    return torch.finfo(precision_of(trace)).bits == 16


def wide_for(trace: Trace) -> torch.dtype:
    """What stands for exact: float32, and float64 where weights are float32 already, which autocast leaves alone."""
    return torch.float32 if trace.dtype in ("float16", "bfloat16", "bf16") else torch.float64


def module_rows(evidence: TracePair) -> list[Row]:
    """Two rows for what every call gives, for what it is given by those before it, and for every tap.

    The distance from exact beside the original's own, and how far all entries together lean to one side.
    """
    assert evidence.original is not None
    given = given_of(evidence)
    sides = (remade(evidence.original, given, evidence.names, wide) for wide in (None, wide_for(evidence.expected)))
    own, exact = map(evidence.aligned, sides)
    eps, subject = torch.finfo(precision_of(evidence.expected)).eps, evidence.subject("modules")
    return [row for name, *three in made(exact, own, evidence.found) for row in judged(subject, name, eps, *three)]


def given_of(evidence: TracePair) -> Given:
    """Inputs of the calls that both sides make, but for what a view has in other coordinates."""
    held = {call.key: call.into for call in calls_of(evidence.found)}
    shared = {key: port for key, port in evidence.names.call_keys(evidence.calls).items() if port in held}
    return {
        key: {at: one for at, one in held[port].items() if _plain(evidence, port, at)} for key, port in shared.items()
    }


def _plain(evidence: TracePair, call: str, place: str) -> bool:
    name = dotted(f"{CALLS}{call}.into", place)
    floating = evidence.found.tensors[name].is_floating_point()
    return floating and not any(fnmatchcase(name, view.names) for view in evidence.views)


def remade(alive: Rerunnable, given: Given, names: NameMap, wide: torch.dtype | None) -> Trace:
    """Calls and taps of the first forward, made again with what is given; ``wide``: in that dtype."""
    side, case = alive.side, alive.case
    with deterministic(case.seed):
        module = fresh_module(side, case.weights)
        batch = case.batches[0]
        if wide is not None:
            module, batch = module.to(wide), with_tensors(batch, lambda v: v.to(wide) if v.is_floating_point() else v)
        trace = Trace(side.name, case.name, dtype_of(module))
        side.seed(case.seed)
        with (
            drawing(case.draws, case.replayed),
            observe(module, side.taps) as seen,
            rewritten(module, given, names),  # behind what looks on: that is to see what a module would have got
            torch.no_grad(),
        ):
            side.loss(module, batch)
        seen.keep(trace)
    return trace


@contextmanager
def rewritten(module: nn.Module, given: Given, names: NameMap) -> Iterator[None]:
    """Every call of the module's parts gets what ``given`` has for it in its shape, in the dtype of its own."""
    counts = Counter[str]()

    def before(name: str, part: nn.Module, args: Any, kwargs: Any) -> Any:
        other = given.get(f"{name}#{counts[name]}", {})
        counts[name] += 1
        own, new = tensors_of(by_name(part, args, kwargs)), dict[int, Tensor]()
        for place, tensor in own.items():
            held = other.get(names.argument(name, place), first_of(other) if tensor is first_of(own) else None)
            if held is not None and tensor.is_floating_point() and held.shape == tensor.shape:
                new[id(tensor)] = held.to(tensor)
        return with_tensors((args, kwargs), lambda tensor: new.get(id(tensor), tensor)) if new else None

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            hook = part.register_forward_pre_hook(partial(before, name or WHOLE), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


Four = tuple[str, Tensor, Tensor, Tensor]
"""A name, and what is exact, what the original gives and what the port gives."""


def made(exact: Trace, own: Trace, found: Trace) -> Iterator[Four]:
    """What all three have, in one shape and of floating point, in the order in which calls end."""
    mine, theirs = ({call.key: call for call in calls_of(trace)} for trace in (own, found))
    for call in (call for call in calls_of(exact) if call.key in theirs):
        both = (in_pairs(one, theirs[call.key]) for one in (call, mine[call.key]))
        for (name, expected, port), (_, original, _) in zip(*both):
            if same_form(expected, original, port):
                yield f"{call.key}.{name}", expected, original, port
    for name in (name for name in exact.tensors if ".tap." in name and name in found.tensors):
        three = (exact.tensors[name], own.tensors[name], found.tensors[name])
        if same_form(*three):
            yield name, *three


def in_pairs(expected: Call, found: Call) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a call is given and gives, each by its place beside the other side's."""
    yield from ((dotted("into", place), mine, theirs) for place, mine, theirs in paired_inputs(expected, found))
    for place, mine, theirs in paired(expected.out, found.out):
        if mine is not None and theirs is not None:
            yield dotted("out", place), mine, theirs


def same_form(*tensors: Tensor) -> bool:
    return all(one.is_floating_point() and one.shape == tensors[0].shape for one in tensors) and tensors[0].numel() > 0


def judged(subject: RowKey, name: str, eps: float, exact: Tensor, own: Tensor, found: Tensor) -> list[Row]:
    """The two rows of one tensor that is computed in a precision of this ``eps``."""
    far, lean = ((size(exact, found), size(exact, own)) for size in (relative, lean_of))
    allowed = {
        "distance": FACTOR * max(far[1], eps / math.sqrt(12)),
        "lean": FACTOR * lean[1] + CHANCE * lean_by_chance(exact, eps) + LEAN * eps,
    }
    rows = []
    for (quantity, bound), (measured, beside) in zip(allowed.items(), (far, lean)):
        detail = f"from exact; the original is at {beside:.1e}"
        row = subject.row(quantity, name, measured, bound, measured <= bound, detail)
        rows.append(replace(row, bound="rounding", bits=bits_of(exact, found, quantity)))
    return rows


def place_of_row(tensor: str) -> str:
    """The module that made what a row is about: of what a module is given, the one around it."""
    module, _, what = tensor.partition("#")
    into = what.partition(".")[2].startswith("into")
    return WHOLE if module.startswith("mb0.") else (module.rpartition(".")[0] if into else module) or WHOLE


def lean_of(exact: Tensor, found: Tensor) -> float:
    """|slope - 1| of the line through the origin that is nearest to the entries; infinite where it is no number."""
    mine, theirs = (side.detach().double().flatten() for side in (exact, found))
    mine, theirs = without_endless(mine, theirs)
    slope = float(mine @ theirs / (mine @ mine)) if bool(mine.any()) else 1.0
    return abs(slope - 1) if math.isfinite(slope) else math.inf


def lean_by_chance(exact: Tensor, eps: float) -> float:
    """The standard error of that where each entry is rounded once and for itself."""
    squares = exact.detach().double().flatten().square().nan_to_num(posinf=0.0)
    total = float(squares.sum())
    return eps / math.sqrt(12) * float(squares.square().sum().sqrt()) / total if total else 0.0
