"""A map to begin with, suggested by the ends of names and by shapes; what is not certain is listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from parity.calls import WHOLE, below, state_of
from parity.names import NameMap, transposed


@dataclass(frozen=True)
class Suggestion:
    """A proposal. ``unmatched_original`` and ``unmatched_port`` name what it leaves out, with the candidates."""

    names: NameMap
    unmatched_original: dict[str, tuple[str, ...]]
    unmatched_port: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        turned = [f"transposed({one.originals[0]!r}, {one.port!r})" for one in self.names.fused.values()]
        lines = ["NameMap({", *(f"    {mine!r}: {port!r}," for mine, port in sorted(self.names.prefixes.items()))]
        lines += ["}, [", *(f"    {one}," for one in turned), "])"] if turned else ["})"]
        for side, unmatched in (("original", self.unmatched_original), ("port", self.unmatched_port)):
            for name, candidates in unmatched.items():
                lines.append(f"not matched, {side}: {name}; same shape: {', '.join(candidates) or 'none'}")
        return "\n".join(lines)


def suggest_names(original: Any, port: Any) -> Suggestion:
    """Match the parameters of two modules (or of what two sides build), and with them the modules around them.

    Two match when shape, last word (weight, bias) and layer numbers are equal and each is the other's only best match:
    most equal words from the end, of whatever shape. What two candidates fit equally well stays unmatched. A matrix
    that is stored the other way round, by its shape or by what its module computes, is ``transposed``.
    """
    original, port = (side if isinstance(side, nn.Module) else side.build() for side in (original, port))
    mine, theirs = state_of(original), state_of(port)
    pairs = _pairs(mine, theirs)
    left = {name: tensor for name, tensor in original.named_parameters() if name not in pairs}
    right = {name: tensor for name, tensor in port.named_parameters() if name not in pairs.values()}
    turned = [transposed(*pair) for pair in pairs.items() if _turned(original, port, *pair)]
    return Suggestion(
        NameMap(dict(sorted(_prefixes(pairs, original, port).items())), turned),
        {name: _candidates(name, left[name], right) for name in sorted(left)},
        {name: _candidates(name, right[name], left) for name in sorted(right)},
    )


def _pairs(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str]:
    """Mutual best matches, round after round: what is matched is no candidate any more."""
    pairs: dict[str, str] = {name: name for name in mine if name in theirs and mine[name].shape == theirs[name].shape}
    while True:
        left = {name: mine[name] for name in mine if name not in pairs}
        right = {name: theirs[name] for name in theirs if name not in pairs.values()}
        found = {name: best for name in left if (best := _best(name, left[name], right)) is not None}
        found = {name: best for name, best in found.items() if _best(best, right[best], left) == name}
        if not found:
            return pairs
        pairs.update(found)


def _best(name: str, tensor: Tensor, others: Mapping[str, Tensor]) -> str | None:
    """The one candidate with most equal words at the end; None where several have as many, one of another shape more.

    A matrix of the shape the other way round is one where a module's name is equal too.
    """
    scores = {other: _tail(name, other) for other in others if _fixed(other) == _fixed(name)}
    most = max(scores.values(), default=0)
    shapes = [tensor.shape, *[tensor.shape[::-1]] * (tensor.dim() == 2 and most > 1)]
    best = [other for other, score in scores.items() if score == most and others[other].shape in shapes]
    return best[0] if len(best) == 1 else None


def _turned(original: nn.Module, port: nn.Module, mine: str, theirs: str) -> bool:
    """Is a matrix stored the other way round? Of a square one, modules of different classes are asked."""
    sides = [side.get_submodule(name.rpartition(".")[0]) for side, name in ((original, mine), (port, theirs))]
    weights = [dict(side.named_parameters()).get(name) for side, name in ((original, mine), (port, theirs))]
    if weights[0] is None or weights[1] is None or weights[0].dim() != 2 or type(sides[0]) is type(sides[1]):
        return False
    if weights[0].shape != weights[1].shape:
        return True
    ways = _way(sides[0], weights[0]), _way(sides[1], weights[1])
    return weights[0].shape[0] == weights[0].shape[1] and 0 not in ways and ways[0] != ways[1]


@torch.no_grad()
def _way(module: nn.Module, weight: Tensor) -> int:
    """1 of a module that computes ``x @ weight.T``, -1 of ``x @ weight``, beside a constant; 0 of neither."""
    x = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    try:
        made = module(x) - module(torch.zeros_like(x))
        return next((way for way, one in ((1, weight.T), (-1, weight)) if torch.allclose(made, one, atol=1e-5)), 0)
    except Exception:  # whatever a module does that takes something else
        return 0


def _tail(name: str, other: str) -> int:
    """How many words are equal from the end."""
    words = zip(reversed(name.split(".")), reversed(other.split(".")))
    return len([*takewhile(lambda pair: pair[0] == pair[1], words)])


def _candidates(name: str, tensor: Tensor, others: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of tensors with this shape, last word and layer numbers."""
    fits = (other for other, one in others.items() if one.shape == tensor.shape and _fixed(other) == _fixed(name))
    return tuple(sorted(fits))


def _fixed(name: str) -> list[str]:
    """The words of a name that a counterpart must have: layer numbers and the last."""
    *around, last = name.split(".")
    return [*(word for word in around if word.isdecimal()), last]


def _prefixes(pairs: Mapping[str, str], original: nn.Module, port: nn.Module) -> dict[str, str | None]:
    """Modules that hold matched parameters, with the modules around them where these agree; the rest by full name.

    One stands for the port's whole only if nothing beside it has a counterpart there.
    """
    modules = {name or WHOLE for name, _ in port.named_modules()}
    prefixes: dict[str, str | None] = {}
    for name in (name for name, _ in original.named_modules() if name):
        inside = [
            (mine[len(name) :].count("."), theirs.split(".")) for mine, theirs in pairs.items() if below(mine, name)
        ]
        targets = {".".join(words[:-depth]) or WHOLE for depth, words in inside}  # as deep above the counterparts
        targets -= {WHOLE} if len(inside) < len(pairs) else set()
        if len(targets) == 1 and targets <= modules - {name}:
            prefixes[name] = targets.pop().removeprefix(WHOLE)
    plain = NameMap(prefixes)
    named = {**prefixes, **{mine: theirs for mine, theirs in pairs.items() if plain.to_port(mine) != theirs}}
    return {name: target for name, target in named.items() if _says(name, target, named)}


def _says(name: str, target: str | None, prefixes: Mapping[str, str | None]) -> bool:
    """Does an entry say what those above it do not?"""
    above = {other: found for other, found in prefixes.items() if other != name and below(name, other)}
    return NameMap(above).to_port(name) != (target or WHOLE)
