"""A name map to begin with: by the ends of names and by shapes, never by order; what is not certain is listed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from parity.calls import WHOLE, state_of
from parity.names import NameMap, below


@dataclass(frozen=True)
class Suggestion:
    """A proposal. ``unmatched_original`` and ``unmatched_port`` name what it leaves out, with the candidates."""

    names: NameMap
    unmatched_original: dict[str, tuple[str, ...]]
    unmatched_port: dict[str, tuple[str, ...]]

    @property
    def complete(self) -> bool:
        """Has every parameter a counterpart?"""
        return not self.unmatched_original and not self.unmatched_port

    def __str__(self) -> str:
        lines = ["NameMap({"]
        lines += [f"    {original!r}: {port!r}," for original, port in sorted(self.names.prefixes.items())]
        lines.append("})")
        for side, unmatched in (("original", self.unmatched_original), ("port", self.unmatched_port)):
            for name, candidates in unmatched.items():
                lines.append(f"not matched, {side}: {name}; same shape: {', '.join(candidates) or 'none'}")
        return "\n".join(lines)


def suggest_names(original: Any, port: Any) -> Suggestion:
    """Match the parameters of two modules (or of what two sides build), and with them the modules around them.

    Two match when shape, last word (weight, bias) and layer numbers are equal and each is the other's only best match:
    most equal words from the end. What two candidates fit equally well stays unmatched.
    """
    original, port = (side if isinstance(side, nn.Module) else side.build() for side in (original, port))
    sides = state_of(original), state_of(port)
    pairs = _pairs(*sides)
    prefixes = _prefixes(pairs, original, port)
    left, right = ({*sides[0]} - {*pairs}, {*sides[1]} - {*pairs.values()})
    buffers = _buffers(original), _buffers(port)
    return Suggestion(
        NameMap({name: prefixes[name] for name in sorted(prefixes)}),
        {name: _candidates(sides[0][name], name, sides[1], right) for name in sorted(left - buffers[0])},
        {name: _candidates(sides[1][name], name, sides[0], left) for name in sorted(right - buffers[1])},
    )


def _buffers(module: nn.Module) -> set[str]:
    return set(state_of(module)) - {name for name, _ in module.named_parameters()}


def _pairs(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Mutual best matches, round after round: what is matched is no candidate any more."""
    pairs: dict[str, str] = {name: name for name in mine if name in theirs and mine[name].shape == theirs[name].shape}
    while True:
        left = {name: mine[name] for name in mine if name not in pairs}
        right = {name: theirs[name] for name in theirs if name not in pairs.values()}
        there, back = ({n: _best(n, side[n], other) for n in side} for side, other in ((left, right), (right, left)))
        found = {name: best for name, best in there.items() if best is not None and back[best] == name}
        if not found:
            return pairs
        pairs.update(found)


def _best(name: str, tensor: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """The one candidate with most equal words at the end; None where several have as many."""
    scores = {other: _tail(name, other) for other in _candidates(tensor, name, others, others)}
    most = max(scores.values(), default=0)
    best = [other for other, score in scores.items() if score == most]
    return best[0] if len(best) == 1 else None


def _candidates(tensor: Tensor, name: str, others: Mapping[str, Tensor], among: Iterable[str]) -> tuple[str, ...]:
    """Names of tensors with this shape, last word and layer numbers."""
    return tuple(sorted(other for other in among if others[other].shape == tensor.shape and _fits(name, other)))


def _fits(name: str, other: str) -> bool:
    words = name.split("."), other.split(".")
    numbers = [[word for word in side if word.isdecimal()] for side in words]
    return words[0][-1] == words[1][-1] and numbers[0] == numbers[1]


def _tail(name: str, other: str) -> int:
    """How many words are equal from the end."""
    count = 0
    for mine, theirs in zip(reversed(name.split(".")), reversed(other.split("."))):
        if mine != theirs:
            break
        count += 1
    return count


def _prefixes(pairs: Mapping[str, str], original: nn.Module, port: nn.Module) -> dict[str, str | None]:
    """Modules that hold matched parameters, with the modules around them where these agree; the rest by full name."""
    modules = {name or WHOLE for name, _ in port.named_modules()}
    prefixes: dict[str, str | None] = {}
    for name, _ in original.named_modules():
        inside = {mine: theirs for mine, theirs in pairs.items() if name and below(mine, name)}
        target = _target(name, inside)
        if target is not None and target in modules and target != name:
            prefixes[name] = target
    plain = NameMap(prefixes)
    prefixes.update({mine: theirs for mine, theirs in pairs.items() if plain.to_port(mine) != theirs})
    return prefixes


def _target(name: str, inside: Mapping[str, str]) -> str | None:
    """The port's module that holds all counterparts at the same depth below it; None where there is no such one."""
    targets = set()
    for mine, theirs in inside.items():
        depth = mine[len(name) :].count(".")
        words = theirs.split(".")
        targets.add(".".join(words[:-depth]) or WHOLE)
    return targets.pop() if len(targets) == 1 else None
