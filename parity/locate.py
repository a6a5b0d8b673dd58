"""Where it goes wrong: the module whose inputs agree with the original's and whose outputs are furthest from it.

Forward first, then backward: there the question is for the gradient that enters a module from behind and the one that
leaves it. A container is named when everything inside it agrees, so that the fault lies between its modules. A module
with an input that already differs is never blamed: the finding says which input, and where that came from.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.calls import CALLS, WHOLE, Call, below, dotted, first_of
from parity.compare import RowKey, compare_named
from parity.tolerances import Kind, Tolerance
from parity.verdict import Finding, Row

LOSS = "(loss)"
BLOCKED_FROM = -1e4
"""An additive mask's entries up to here hide a position: implementations take anything from -10000 to -inf."""

ALONE = 1.0
"""The factor of what one side alone has, or has in another shape: any number that is too far goes before it."""

NEAR, AMPLIFIED = 10.0, 20.0
"""An input up to ``NEAR`` times its bound is not what an output is so many times further off by."""

NEVER = "the port never makes this call", ALONE

Allowed = Callable[[str, torch.dtype], Tolerance]
"""The bound on a tensor of a call, by its name in a trace and its dtype."""

Pairs = list[tuple[str, Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class Comparator:
    """The one comparison, by root mean squares, in words; empty where two agree, as nothing and nothing do.

    ``own`` has by the identity of the original's tensor the bound that is its own; ``bound`` is that of all others.
    """

    bound: float
    own: Mapping[int, float] = field(default_factory=dict)

    def __call__(self, expected: Tensor, found: Tensor) -> str:
        return self.measure(expected, found)[0]

    def measure(self, expected: Tensor, found: Tensor) -> tuple[str, float]:
        """And how many bounds they are apart: 0 within one, infinite where that is no number, 1 of another shape."""
        tolerance = Tolerance(Kind.RMS, self.own.get(id(expected), self.bound), "")
        row = compare_named(RowKey("", "", ""), "", "", expected, found, tolerance)
        if not row.compared or row.passed or expected.numel() == found.numel() == 0:
            return "", 0.0
        factor = ALONE if row.measured is None else row.ratio or 0.0
        return row.detail, factor if factor <= math.inf else math.inf


def paired(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Pairs:
    """Outputs by their place; where one side gives a lone tensor, it is held against the other's first."""
    if expected and found and ("" in expected) != ("" in found):
        return [("", next(iter(expected.values())), next(iter(found.values())))]
    places = [*expected, *(place for place in found if place not in expected)]
    return [(place, expected.get(place), found.get(place)) for place in places]


def paired_inputs(expected: Call, found: Call) -> list[tuple[str, Tensor, Tensor]]:
    """Inputs that both sides have, by name, each pair in one form; the first tensors are a pair whatever their names.

    An additive mask and a boolean one, integers of another width and leading axes of size 1 are the same form. Inputs
    that one side passes in another number of dimensions (a padding mask, a full one) say nothing about each other.
    """
    pairs = {place: one_form(mine, found.into[place]) for place, mine in expected.into.items() if place in found.into}
    kept = {place: pair for place, pair in pairs.items() if pair[0].dim() == pair[1].dim()}
    mine, theirs = first_of(expected.into), first_of(found.into)
    place = next((place for place, tensor in expected.into.items() if tensor is mine), "")
    if mine is not None and theirs is not None and place not in pairs:
        kept[place] = one_form(mine, theirs)
    return [(place, *pair) for place, pair in kept.items()]


def one_form(expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Two inputs in one form, see :func:`paired_inputs`."""
    if torch.bool in (expected.dtype, found.dtype) and expected.dtype != found.dtype:
        expected, found = _as_mask(expected), _as_mask(found)
    if not (expected.is_floating_point() or found.is_floating_point()) and expected.dtype != found.dtype:
        expected, found = expected.long(), found.long()
    if expected.shape == found.shape:
        return expected, found
    expected, found = _without_leading(expected), _without_leading(found)
    if expected.dtype == found.dtype == torch.bool and expected.dim() and found.dim():
        with contextlib.suppress(RuntimeError):  # shapes that do not go together
            expected, found = torch.broadcast_tensors(expected, found)
    return expected, found


def _as_mask(tensor: Tensor) -> Tensor:
    """True where a position is seen, of an additive mask or one of zeros and ones; anything else as it is."""
    if tensor.is_floating_point() and bool(((tensor == 0) | (tensor <= BLOCKED_FROM)).all()):
        return tensor == 0
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return tensor.bool() if whole and bool(((tensor == 0) | (tensor == 1)).all()) else tensor


def _without_leading(tensor: Tensor) -> Tensor:
    while tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def compare_calls(subject: RowKey, expected: Call, found: Call | None, allowed: Allowed) -> list[Row]:
    """One row for every output under its own bound, and one for all that one side alone gives."""
    if found is None:
        return [subject.failed("out", expected.key, "missing: the port makes fewer calls")]
    pairs = paired(expected.out, found.out)
    lacking = [place or "a lone tensor" for place, _, theirs in pairs if theirs is None]
    extra = [place or "a lone tensor" for place, mine, _ in pairs if mine is None]
    alone = len(lacking) + len(extra)
    rows = [
        compare_named(
            subject, "out", dotted(expected.key, place), mine, theirs, _bound(allowed, expected, "out", place)
        )
        for place, mine, theirs in pairs
        if alone < 2 or (mine is not None and theirs is not None)
    ]
    if alone > 1:
        said = [f"{word}: {', '.join(names)}" for word, names in (("missing", lacking), ("unexpected", extra)) if names]
        detail = "; ".join([*said, f"None in the name map for {expected.module}, if that is right"])
        rows.append(subject.failed("out", expected.key, detail))
    return rows


def _bound(allowed: Allowed, call: Call, kind: str, place: str) -> Tolerance:
    """That of the original's own place, which has another name where the other side gives a lone tensor."""
    held = getattr(call, kind)
    place = place if place in held else next(iter(held), place)
    value = held.get(place)
    dtype = torch.float32 if value is None else value.dtype
    return allowed(dotted(f"{CALLS}{call.key}.{kind}", place), dtype)


def compare_inputs(subject: RowKey, expected: Call, found: Call, allowed: Allowed) -> list[Row]:
    """One row for every id, position and mask that both sides have; states are somebody's outputs."""
    return [
        compare_named(
            subject, "in", dotted(expected.key, place), mine, theirs, _bound(allowed, expected, "into", place)
        )
        for place, mine, theirs in paired_inputs(expected, found)
        if "mask" in place or not mine.is_floating_point()
    ]


def first_forward(
    expected: Sequence[Call], found: Sequence[Call], apart: Comparator, every_module: bool = False
) -> Finding | None:
    """The module that is most bounds off by its own doing; of equals, the first that finishes, so that inner ones are.

    By its own doing: its inputs agree and all modules inside it, or are a little beyond the bound, which explains
    nothing as large. A state that differs and makes no difference to the outputs, read for its dtype alone, is nothing
    to name. With ``every_module`` one that the other side never calls is a finding. A call that the other side lacks
    is one only if nothing went wrong before it.
    """
    other = {call.key: call for call in found}
    both = {call: other[call.key] for call in expected if call.key in other}
    outputs = {call: _outputs(call, match, apart) for call, match in both.items()}
    inputs = {call: _differing(call, match, apart, bool(outputs[call][0])) for call, match in both.items()}
    inputs = {call: said for call, said in inputs.items() if said[1]}
    called = {call.module for call in found}
    wrong: list[Call] = []
    own: dict[Call, float] = {}
    for call in (call for call in expected if every_module or call.module in called):
        detail, factor = outputs.get(call, NEVER)
        if not detail or (call not in both and wrong):
            continue
        around = max((own[one] for one in _inside_call(expected, call) if one in own), default=0.0)
        around = max(around, inputs[call][2] if call in inputs else 0.0)
        if _by_itself(factor, around):
            own[call] = factor
        wrong += [call] if call in both else []
    blamed = [*_first_input(expected, expected, inputs), *((call, outputs[call][0]) for call in wrong)] if wrong else []
    if own:
        call = max(own, key=lambda call: own[call])
        inner = _first_input(expected, _inside_call(expected, call), inputs)
        blamed = [(call, "; ".join([outputs.get(call, NEVER)[0], *(f"{one.key}: {words}" for one, words in inner)]))]
    return next((Finding("forward", "forward", call.module, call.number, detail) for call, detail in blamed), None)


def _outputs(expected: Call, found: Call, apart: Comparator) -> tuple[str, float]:
    """The output that is most bounds off, in words and bounds; empty when all agree."""
    worst = "", 0.0
    for place, mine, theirs in paired(expected.out, found.out):
        if mine is None or theirs is None:
            said = f"output {place or 'tensor'} is {'missing' if theirs is None else 'not expected'}", ALONE
        else:
            said = apart.measure(mine, theirs)
        worst = max(worst, said, key=lambda one: one[1])
    return worst


def _differing(expected: Call, found: Call, apart: Comparator, states: bool) -> tuple[str, str, float]:
    """The first input that differs and how: integers and masks before ``states``, since these may follow from them.

    And how many bounds: infinite for integers and masks; empty words where all agree.
    """
    pairs = sorted(paired_inputs(expected, found), key=lambda pair: pair[1].is_floating_point())
    asked = [(place, pair) for place, *pair in pairs if states or not pair[0].is_floating_point()]
    told = [(place, *apart.measure(*pair), pair[0]) for place, pair in asked]
    differ = [(place, said, by if one.is_floating_point() else math.inf) for place, said, by, one in told if said]
    return (*differ[0][:2], max(by for *_, by in differ)) if differ else ("", "", 0.0)


def _first_input(
    calls: Sequence[Call], among: Sequence[Call], inputs: Mapping[Call, tuple[str, str, float]]
) -> list[tuple[Call, str]]:
    """The call whose input is the first to differ, and what is to be said of it; none where all agree.

    It is the outermost one around the first that differs, since what is handed down differs further in as well.
    """
    wrong = [call for call in among if call in inputs]
    if not wrong:
        return []
    call = next((one for one in reversed(wrong) if wrong[0] in _inside_call(calls, one)), wrong[0])
    place, said, _ = inputs[call]
    named = f"`{place}` " if place else ""
    return [(call, f"its input {named}already differs, {said}, {_origin(calls, call, place)}")]


def _inside_call(calls: Sequence[Call], around: Call) -> list[Call]:
    """The calls that a call makes: those of modules inside it since its last call ended."""
    before = calls[: calls.index(around)]
    begin = max((at for at, call in enumerate(before) if call.module == around.module), default=-1)
    return [call for call in before[begin + 1 :] if inside_of(call.module, around.module)]


def _origin(calls: Sequence[Call], call: Call, place: str) -> str:
    """Where an input came from, judged by its values: the model's own, another module's output, or neither."""
    value, whole, inner = call.into[place], calls[-1], _inside_call(calls, call)
    if call is whole and call.module == WHOLE:
        return "which is the model's own"
    own = next((name for name, tensor in whole.into.items() if same(tensor, value)), None)
    if own is not None and whole.module == WHOLE:
        return f"the model's own input `{own}`"
    earlier = (one for one in calls[: calls.index(call)] if one not in inner)
    made = [one for one in earlier if any(same(out, value) for out in one.out.values())]
    return f"made by {made[-1].key}" if made else "made outside of any module"


def same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)


def first_backward(
    expected: Sequence[Call],
    found: Sequence[Call],
    gradients: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    apart: Comparator,
) -> Finding | None:
    """The module that sends back what is most bounds off by its own doing; of equals, the first from the loss back.

    By its own doing: the gradients of its outputs agree, and what all modules inside it send back, or are a little
    beyond the bound, which explains nothing as large. A parameter's gradient counts with the module that has it.
    """
    other = {call.key: call for call in found}
    both = {call: other[call.key] for call in expected if call.key in other}
    behind = {call: _behind(call, match, apart) for call, match in both.items()}
    differ = {name: told for name in {*gradients[0], *gradients[1]} if (told := _gradient(name, *gradients, apart))[0]}
    own: dict[Call, tuple[str, float]] = {}
    for call, match in both.items():  # those inside of others end before them
        detail, factor = _parts(call, match, apart)
        inner = max((own[one][1] for one in _inside_call(expected, call) if one in own), default=0.0)
        if detail and _by_itself(factor, max(inner, behind[call])):
            own[call] = detail, factor
    blamed = [(call.module, call.number, *own[call]) for call in reversed(both) if call in own]
    for name, told in sorted(differ.items()):
        module = max((call.module for call in both if inside_of(name, call.module)), key=_depth, default="")
        got = max((behind[call] for call in both if call.module == module), default=math.inf)
        if _by_itself(told[1], got) and module not in {one for one, *_ in blamed}:
            blamed.append((module, 0, *told))
    if not blamed:
        return _around(differ, [call for call in reversed(both) if not behind[call]])
    module, number, detail, _ = max(blamed, key=lambda one: one[3])
    return Finding("gradients", "backward", module, number, detail)


def _by_itself(factor: float, around: float) -> bool:
    """Does what is off by ``around`` bounds not explain what is off by ``factor``?"""
    return not around or (around < NEAR and factor > AMPLIFIED * around)


def inside_of(name: str, around: str) -> bool:
    """Is a module or parameter inside of a module, and not the module itself?"""
    return name != around and (around == WHOLE or below(name, around))


def _parts(expected: Call, found: Call, apart: Comparator) -> tuple[str, float]:
    """The input whose gradient is most bounds off, in words and bounds; empty when all agree.

    An input that has another shape by design says nothing.
    """
    shared = [place for place in expected.into_grad if place in found.into_grad]
    pairs = [(f"input {place}", expected.into_grad[place], found.into_grad[place]) for place in shared]
    first = first_of(expected.into_grad), first_of(found.into_grad)
    pairs += [("its input", first[0], first[1])] if first[0] is not None and first[1] is not None else []
    told = [(what, *apart.measure(*pair)) for what, *pair in pairs if pair[0].shape == pair[1].shape]
    worst = max(told, key=lambda one: one[2], default=("", "", 0.0))
    return (f"gradient of {worst[0]}: {worst[1]}", worst[2]) if worst[1] else ("", 0.0)


def _behind(expected: Call, found: Call, apart: Comparator) -> float:
    """How many bounds the gradients of outputs are off; infinite where there is none, or one side alone has one."""
    pairs = [(mine, theirs) for _, mine, theirs in paired(expected.out_grad, found.out_grad)]
    sizes = [math.inf if mine is None or theirs is None else apart.measure(mine, theirs)[1] for mine, theirs in pairs]
    return max(sizes, default=math.inf)


def _around(differ: Mapping[str, tuple[str, float]], right: Sequence[Call]) -> Finding | None:
    """The innermost module around a wrong gradient that itself got the right one from behind; else the loss.

    A parameter's gradient is the sum over all calls, so the call is not told.
    """
    if not differ:
        return None
    around = ((name, [call for call in right if inside_of(name, call.module)]) for name in sorted(differ))
    blamed = [(max(calls, key=lambda call: _depth(call.module)), differ[name][0]) for name, calls in around if calls]
    if not blamed:
        return Finding("gradients", "backward", LOSS, 0, min(differ.values())[0])
    call, detail = max(blamed, key=lambda entry: _depth(entry[0].module))
    return Finding("gradients", "backward", call.module, 0, detail)


def _depth(module: str) -> int:
    return -1 if module == WHOLE else len(module)


def _gradient(
    name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], apart: Comparator
) -> tuple[str, float]:
    mine, theirs = expected.get(name), found.get(name)
    if mine is None or theirs is None:
        return f"gradient of {name}: {'the original' if mine is None else 'the port'} has none", ALONE
    said, factor = apart.measure(mine, theirs)
    return (f"gradient of {name}: {said}", factor) if said else ("", 0.0)
