"""Where it goes wrong: the first module whose inputs agree with the original's and whose outputs do not.

Forward first, then backward: there the question is for the gradient that enters a module from behind and the one that
leaves it. A container is named when everything inside it agrees, so that the fault lies between its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.kit.calls import paired
from parity.kit.names import WHOLE, below
from parity.kit.nested import first_of
from parity.kit.watch import Call

LOSS = "(loss)"

Agree = Callable[[Tensor, Tensor], bool]


@dataclass(frozen=True)
class Finding:
    """The first place where two sides part: check, direction (forward, backward, ...), module, call and the numbers."""

    check: str
    direction: str
    module: str
    call: int
    detail: str

    def __str__(self) -> str:
        place = self.module + (f", call {self.call}" if self.call else "")
        way = "" if self.direction == self.check else f" ({self.direction})"
        return f"{self.check}{way} first goes wrong in {place}: {self.detail}"


def within(bound: float) -> Agree:
    """Agreement relative to the largest entry; infinities must be the same."""

    def agree(expected: Tensor, found: Tensor) -> bool:
        if expected.shape != found.shape:
            return False
        expected, found = expected.detach().to("cpu", torch.float64), found.detach().to("cpu", torch.float64)
        gap = torch.where(expected == found, 0.0, (expected - found).abs())
        finite = torch.where(torch.isfinite(expected), expected, 0.0)
        size = finite.abs().max().clamp(min=1e-300) if finite.numel() else torch.ones(())
        return bool((gap <= bound * size).all())

    return agree


def first_forward(
    expected: Sequence[Call], found: Sequence[Call], agree: Agree, every_module: bool = False
) -> Finding | None:
    """In the order in which modules finish, so that an inner module is named before the one around it.

    With ``every_module`` one that the other side never calls is a finding; otherwise it is only mentioned.
    """
    other = {call.key: call for call in found}
    called = {call.module for call in found}
    silent = sorted({call.module for call in expected} - called)
    wrong: list[tuple[Call, str]] = []
    for call in (call for call in expected if every_module or call.module in called):
        match = other.get(call.key)
        detail = "the port never makes this call" if match is None else _outputs(call, match, agree)
        if detail and (match is None or inputs_agree(call, match, agree)):
            return _finding("forward", call, detail, silent)
        wrong += [(call, detail)] if detail else []
    return _finding("forward", *wrong[0], silent) if wrong else None


def _finding(check: str, call: Call, detail: str, silent: Sequence[str]) -> Finding:
    inside = [name for name in silent if _inside(name, call.module)]
    note = f"; never called by the port: {', '.join(inside)}" if inside else ""
    return Finding(check, "forward", call.module, call.number, detail + note)


def _outputs(expected: Call, found: Call, agree: Agree) -> str:
    """The first output that differs, in words; empty when all agree."""
    for place, mine, theirs in paired(expected.out, found.out):
        if mine is None or theirs is None:
            return f"output {place or 'tensor'} is {'missing' if theirs is None else 'not expected'}"
        if not agree(mine, theirs):
            return worst(mine, theirs)
    return ""


def inputs_agree(expected: Call, found: Call, agree: Agree) -> bool:
    """Do the first tensors agree, and those of the same name, shape and kind on both sides?"""
    pairs = [(expected.into[place], found.into[place]) for place in expected.into if place in found.into]
    pairs = [pair for pair in pairs if pair[0].shape == pair[1].shape and _kind(pair[0]) == _kind(pair[1])]
    first = first_of(expected.into), first_of(found.into)
    if first[0] is not None and first[1] is not None:
        pairs.append((first[0], first[1]))
    return all(agree(mine, theirs) for mine, theirs in pairs)


def _kind(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


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
    while inner := [entry for entry in parting if _inside(entry[0].module, first[0].module)]:
        first = inner[0]
    return first


def _inside(name: str, around: str) -> bool:
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
    holders = [call for call in calls if _inside(parameter, call.module)]
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
    gap = (expected.detach().double() - found.detach().double()).abs()
    flat = int(gap.nan_to_num(nan=float("inf")).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), expected.shape)) if expected.dim() else ()
    values = expected.flatten()[flat].item(), found.flatten()[flat].item()
    return f"largest at {index}: expected {values[0]:.6g}, found {values[1]:.6g}"
