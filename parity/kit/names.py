"""Which name on the port's side is which on the original's: explicit, by prefixes, never by order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.errors import InputError

WHOLE = "(whole)"
"""The module itself, whose name in torch is the empty string."""


@dataclass(frozen=True)
class Joined:
    """A parameter of the port that is made of the original's: concatenated, transposed, cut, scaled.

    ``join`` is the axis to concatenate along, or a linear function of the list of the original's tensors. Gradients and
    updated weights go through the same function.
    """

    port: str
    originals: tuple[str, ...]
    join: int | Callable[[Sequence[Tensor]], Tensor] = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=self.join) if isinstance(self.join, int) else self.join(tensors)


def transposed(original: str, port: str) -> Joined:
    """The port stores the matrix the other way round."""
    return Joined(port, (original,), lambda tensors: tensors[0].T)


class NameMap:
    """The original's names to the port's.

    Args:
        prefixes: of modules and parameters, ``{"self_attn": "attention", "mlp.up_proj": "mlp.w3"}``. The longest one
            that fits a name counts; names that no prefix fits are the same on both sides. None says that the port has
            no counterpart; the empty string is the whole module.
        joined: parameters of the port that are made of several of the original's, or of one in another layout.
        only_port: prefixes that the original lacks.
    """

    def __init__(
        self,
        prefixes: Mapping[str, str | None] | None = None,
        joined: Iterable[Joined] = (),
        only_port: Iterable[str] = (),
    ) -> None:
        self.prefixes = dict(prefixes or {})
        self.joined = {entry.port: entry for entry in joined}
        self.only_port = tuple(only_port)
        targets = [target for target in self.prefixes.values() if target is not None]
        twice = sorted({target for target in targets if targets.count(target) > 1})
        if twice:
            raise InputError("name map", twice[0], "several of the original's names", "one; Joined takes several")

    def to_port(self, name: str) -> str | None:
        """The port's name of a module or parameter of the original; None where it has none."""
        whole = name == WHOLE
        name = "" if whole else name
        fitting = [prefix for prefix in self.prefixes if below(name, prefix)]
        if not fitting and whole:
            return None if "" in self.prefixes.values() else WHOLE
        if not fitting:
            return name
        prefix = max(fitting, key=len)
        target = self.prefixes[prefix]
        if target is None:
            return None
        rest = name[len(prefix) :].lstrip(".")
        return ".".join(filter(None, (target, rest))) or WHOLE

    def parameters(self, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The original's tensors as the port would hold them, by the port's names.

        Raises:
            InputError: two of the original's names come to the same one.
        """
        used = {name for entry in self.joined.values() for name in entry.originals}
        found = {port: originals[name] for port, name in self.back(n for n in originals if n not in used).items()}
        for name, entry in self.joined.items():
            if all(original in originals for original in entry.originals):
                found[name] = entry([originals[original] for original in entry.originals])
        return found

    def back(self, originals: Iterable[str]) -> dict[str, str]:
        """The port's name of each of the original's to that one.

        Raises:
            InputError: two come to the same one.
        """
        found: dict[str, str] = {}
        for name in originals:
            port = self.to_port(name)
            if port is not None and found.setdefault(port, name) != name:
                raise InputError("name map", port, f"{found[port]} and {name} of the original", "one of them, or None")
        return found

    def parameter_names(self, originals: Sequence[str]) -> tuple[str, ...]:
        """The names that :meth:`parameters` gives."""
        known = set(originals)
        used = {name for entry in self.joined.values() for name in entry.originals}
        plain = [self.to_port(name) for name in originals if name not in used]
        joined = [name for name, entry in self.joined.items() if known.issuperset(entry.originals)]
        return tuple(dict.fromkeys([*filter(None, plain), *joined]))

    def expected_of(self, name: str) -> bool:
        """Has the original a counterpart of this name of the port?"""
        return not any(below(name, prefix) for prefix in self.only_port)

    def __repr__(self) -> str:
        return f"NameMap({self.prefixes!r}, joined={list(self.joined)!r}, only_port={self.only_port!r})"


def below(name: str, prefix: str) -> bool:
    """Is ``prefix`` the name or one of the modules around it?"""
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def as_map(names: NameMap | Mapping[str, str | None] | None) -> NameMap:
    """A map from what users hand in."""
    return names if isinstance(names, NameMap) else NameMap(names)
