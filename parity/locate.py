"""Where it goes wrong: the first module whose inputs agree with the original's and whose outputs do not.

Forward first, then backward: there the question is for the gradient that enters a module from behind and the one that
leaves it. A container is named when everything inside it agrees, so that the fault lies between its modules. A module
with an input that already differs is never blamed: the finding says which input, and where that came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.calls import WHOLE, Call, first_of
from parity.compare import Subject, compare, compare_named
from parity.names import below
from parity.tolerances import EXACT, Kind, Tolerance
from parity.verdict import Row

LOSS = "(loss)"
BLOCKED_FROM = -1e4
"""An additive mask's entries up to here hide a position: implementations take anything from -10000 to -inf."""

Agree = Callable[[Tensor, Tensor], bool]
Pairs = list[tuple[str, Tensor | None, Tensor | None]]


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


def within(bound: float) -> Agree:
    """Agreement relative to the largest entry; infinities must be the same, and so must integers and masks."""

    def agree(expected: Tensor, found: Tensor) -> bool:
        if expected.shape != found.shape:
            return False
        exact = not (expected.is_floating_point() or found.is_floating_point())
        if exact or expected.is_complex():
            return bool((expected.detach().cpu() == found.detach().cpu()).all())
        expected, found = expected.detach().to("cpu", torch.float64), found.detach().to("cpu", torch.float64)
        gap = torch.where(expected == found, 0.0, (expected - found).abs())
        finite = torch.where(torch.isfinite(expected), expected, 0.0)
        size = finite.abs().max().clamp(min=1e-300) if finite.numel() else torch.ones(())
        return bool((gap <= bound * size).all())

    return agree


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
    pairs = {place: (expected.into[place], found.into[place]) for place in expected.into if place in found.into}
    alike = {place: one_form(*pair) for place, pair in pairs.items()}
    kept = {place: pair for place, pair in alike.items() if pair[0].dim() == pair[1].dim()}
    first = first_of(expected.into), first_of(found.into)
    if first[0] is not None and first[1] is not None and not any(first[0] is pair[0] for pair in pairs.values()):
        place = next(place for place, tensor in expected.into.items() if tensor is first[0])
        kept[place] = one_form(first[0], first[1])
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
        try:
            shape = torch.broadcast_shapes(expected.shape, found.shape)
        except RuntimeError:
            return expected, found
        return expected.expand(shape), found.expand(shape)
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


def compare_calls(subject: Subject, expected: Call, found: Call | None, tolerance: Tolerance) -> list[Row]:
    """One row for every output."""
    if found is None:
        return [subject.row("out", expected.key, None, None, False, "missing: the port makes fewer calls")]
    return [
        compare_outputs(subject, "out", ".".join(filter(None, (expected.key, place))), mine, theirs, tolerance)
        for place, mine, theirs in paired(expected.out, found.out)
    ]


def compare_inputs(subject: Subject, expected: Call, found: Call, tolerance: Tolerance) -> list[Row]:
    """One row for every input that both sides have; ids, positions and masks must be equal."""
    return [
        compare_outputs(subject, "in", ".".join(filter(None, (expected.key, place))), mine, theirs, tolerance)
        for place, mine, theirs in paired_inputs(expected, found)
    ]


def compare_outputs(
    subject: Subject, quantity: str, name: str, expected: Tensor | None, found: Tensor | None, tolerance: Tolerance
) -> Row:
    """Like ``compare_named``; whole numbers must be equal, and what is infinite on both sides alike agrees."""
    if expected is None or found is None or expected.shape != found.shape:
        return compare_named(subject, quantity, name, expected, found, tolerance)
    if not (expected.is_floating_point() or expected.is_complex()):
        return compare(subject, quantity, name, expected, found, EXACT)
    endless = torch.isinf(expected) & (expected == found)
    if not bool(endless.any()) or tolerance.kind is Kind.EQUAL:
        return compare(subject, quantity, name, expected, found, tolerance)
    if bool(endless.all()):
        return subject.row(quantity, name, 0.0, tolerance.bound, True, "infinite everywhere, on both sides alike")
    return compare(subject, quantity, name, expected[~endless], found[~endless], tolerance)


def first_forward(
    expected: Sequence[Call], found: Sequence[Call], agree: Agree, every_module: bool = False
) -> Finding | None:
    """In the order in which modules finish, so that an inner module is named before the one around it.

    With ``every_module`` one that the other side never calls is a finding; otherwise it is only mentioned. A call that
    the other side lacks is one only if nothing went wrong before it.
    """
    other = {call.key: call for call in found}
    called = {call.module for call in found}
    silent = sorted({call.module for call in expected} - called)
    wrong: list[tuple[Call, str]] = []
    for call in (call for call in expected if every_module or call.module in called):
        match = other.get(call.key)
        detail = "the port never makes this call" if match is None else _outputs(call, match, agree)
        if not detail or (match is None and wrong):
            continue
        if match is None or not _differing(call, match, agree):
            inner = _first_input(expected, other, call, agree)
            return _finding(call, "; ".join(filter(None, (detail, inner and inner[1]))), silent)
        wrong.append((call, detail))
    if not wrong:
        return None
    call, detail = _first_input(expected, other, None, agree) or wrong[0]
    return _finding(call, detail, silent)


def _finding(call: Call, detail: str, silent: Sequence[str]) -> Finding:
    inside = [name for name in silent if inside_of(name, call.module)]
    note = f"; never called by the port: {', '.join(inside)}" if inside else ""
    return Finding("forward", "forward", call.module, call.number, detail + note)


def _outputs(expected: Call, found: Call, agree: Agree) -> str:
    """The first output that differs, in words; empty when all agree."""
    for place, mine, theirs in paired(expected.out, found.out):
        if mine is None or theirs is None:
            return f"output {place or 'tensor'} is {'missing' if theirs is None else 'not expected'}"
        if not agree(mine, theirs):
            return worst(mine, theirs)
    return ""


def _differing(expected: Call, found: Call, agree: Agree) -> tuple[str, Tensor, Tensor] | None:
    """The first input that does not agree: integers and masks before states, since these may follow from them."""
    pairs = sorted(paired_inputs(expected, found), key=lambda pair: pair[1].is_floating_point())
    return next((pair for pair in pairs if not agree(pair[1], pair[2])), None)


def _first_input(
    calls: Sequence[Call], other: Mapping[str, Call], around: Call | None, agree: Agree
) -> tuple[Call, str] | None:
    """The call inside of another one (or of none) whose input is the first to differ, and what is to be said of it.

    It is the outermost one around the first that differs, since what is handed down differs further in as well.
    """
    at = len(calls) if around is None else calls.index(around)
    inner = _inside_call(calls, at) if around is not None else list(calls)
    wrong = [call for call in inner if call.key in other and _differing(call, other[call.key], agree)]
    if not wrong:
        return None
    first = wrong[0]
    outer = [call for call in wrong if inside_of(first.module, call.module)]
    call = min((call for call in outer if first in _inside_call(calls, calls.index(call))), key=_depth, default=first)
    pair = _differing(call, other[call.key], agree)
    assert pair is not None
    place, mine, theirs = pair
    named, origin = f"`{place}` " if place else "", _origin(calls, call, place)
    words = f"its input {named}already differs {_at(mine, theirs)}, {origin}"
    return call, words if around is None else f"{call.module}, call {call.number}: {words}"


def _depth(call: Call) -> int:
    return -1 if call.module == WHOLE else call.module.count(".")


def _inside_call(calls: Sequence[Call], at: int) -> list[Call]:
    """The calls that a call makes: those of modules inside it since its last call ended."""
    found: list[Call] = []
    for call in reversed(calls[:at]):
        if call.module == calls[at].module:
            break
        found += [call] if inside_of(call.module, calls[at].module) else []
    return found[::-1]


def _origin(calls: Sequence[Call], call: Call, place: str) -> str:
    """Where an input came from, judged by its values: the model's own, another module's output, or neither."""
    value, at, whole = call.into[place], calls.index(call), calls[-1]
    if call is whole and call.module == WHOLE:
        return "which is the model's own"
    own = next((name for name, tensor in whole.into.items() if same(tensor, value)), None)
    if own is not None and whole.module == WHOLE:
        return f"the model's own input `{own}`"
    inner = _inside_call(calls, at)
    made = [one for one in calls[:at] if one not in inner and any(same(out, value) for out in one.out.values())]
    return f"made by {made[-1].module}, call {made[-1].number}" if made else "made outside of any module"


def same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)


def first_backward(
    expected: Sequence[Call],
    found: Sequence[Call],
    gradients: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    agree: Agree,
) -> Finding | None:
    """From the loss back: gradients of outputs agree, those of inputs do not; then parameters on their own."""
    other = {call.key: call for call in found}
    both = [(call, other[call.key]) for call in reversed(expected) if call.key in other]
    parting = [(call, detail) for call, match in both if (detail := _parts(call, match, agree))]
    if parting:
        call, detail = _innermost(parting)
        return Finding("gradients", "backward", call.module, call.number, detail)
    return _first_parameter(*gradients, both, agree)


def _innermost(parting: Sequence[tuple[Call, str]]) -> tuple[Call, str]:
    """A container starts first going back, so a module inside it is preferred."""
    first = parting[0]
    while inner := [entry for entry in parting if inside_of(entry[0].module, first[0].module)]:
        first = inner[0]
    return first


def inside_of(name: str, around: str) -> bool:
    """Is a module or parameter inside of a module, and not the module itself?"""
    return name != around and (around == WHOLE or below(name, around))


def _parts(expected: Call, found: Call, agree: Agree) -> str:
    """Where the gradients of the outputs agree and one of the inputs' does not, its difference; else empty."""
    if not gradients_agree(expected.out_grad, found.out_grad, agree):
        return ""
    for place in (place for place in expected.into_grad if place in found.into_grad):
        pair = expected.into_grad[place], found.into_grad[place]
        if not agree(*pair):
            return f"gradient of input {place}: {worst(*pair)}"
    first = first_of(expected.into_grad), first_of(found.into_grad)
    if first[0] is not None and first[1] is not None and not agree(first[0], first[1]):
        return f"gradient of its input: {worst(first[0], first[1])}"
    return ""


def gradients_agree(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], agree: Agree) -> bool:
    """Do all gradients of outputs agree, and is there one?"""
    pairs = [(mine, theirs) for _, mine, theirs in paired(expected, found)]
    return bool(pairs) and all(
        mine is not None and theirs is not None and agree(mine, theirs) for mine, theirs in pairs
    )


def _first_parameter(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    both: Sequence[tuple[Call, Call]],
    agree: Agree,
) -> Finding | None:
    """The innermost module around a wrong gradient that itself got the right one from behind; else the loss.

    A parameter's gradient is the sum over all calls, so the call is not told.
    """
    differ = {name: detail for name in {*expected, *found} if (detail := _gradient(name, expected, found, agree))}
    right = [call for call, match in both if gradients_agree(call.out_grad, match.out_grad, agree)]
    blamed = [(call, detail) for name, detail in sorted(differ.items()) for call in _around(name, right)]
    if blamed:
        call, detail = _innermost(sorted(blamed, key=lambda entry: right.index(entry[0])))
        return Finding("gradients", "backward", call.module, 0, detail)
    return Finding("gradients", "backward", LOSS, 0, min(differ.values())) if differ else None


def _around(parameter: str, calls: Sequence[Call]) -> list[Call]:
    """The innermost of the modules that hold a parameter, none where no module does."""
    holders = [call for call in calls if inside_of(parameter, call.module)]
    return [max(holders, key=lambda call: len(call.module) if call.module != WHOLE else -1)] if holders else []


def _gradient(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], agree: Agree) -> str:
    mine, theirs = expected.get(name), found.get(name)
    if mine is None or theirs is None:
        side = "the original" if mine is None else "the port"
        return f"gradient of {name}: {side} has none"
    return "" if agree(mine, theirs) else f"gradient of {name}: {worst(mine, theirs)}"


def worst(expected: Tensor, found: Tensor) -> str:
    """Index of the largest difference and both values."""
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    index, mine, theirs = _largest(expected, found)
    return f"largest at {index}: expected {mine:.6g}, found {theirs:.6g}"


def _at(expected: Tensor, found: Tensor) -> str:
    """The first difference of whole numbers, the largest of others: index and both values."""
    if expected.shape != found.shape:
        return f"in shape: {tuple(expected.shape)} / {tuple(found.shape)}"
    index, mine, theirs = _largest(expected, found, first=not expected.is_floating_point())
    values = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in (mine, theirs))
    return f"at {index}: {' / '.join(values)}"


def _largest(expected: Tensor, found: Tensor, first: bool = False) -> tuple[tuple[int, ...], float, float]:
    gap = (expected.detach().double() - found.detach().double()).abs()
    gap = (gap > 0).double() if first else gap.nan_to_num(nan=float("inf"))
    flat = int(gap.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape)) if expected.dim() else ()
    return index, expected.flatten()[flat].item(), found.flatten()[flat].item()
