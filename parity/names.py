"""Which name on the port's side is which on the original's: explicit, by prefixes, never by order.

A map to begin with is suggested by the ends of names and by shapes; what is not certain is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from parity.allowed import DRAWN, Spread
from parity.calls import CALL, CALLS, WHOLE, below, dotted
from parity.errors import InputError
from parity.trace import STATES, Trace

STATE_PREFIXES = tuple(f"{group}." for group in STATES)

Held = TypeVar("Held")


@dataclass(frozen=True)
class Fused:
    """A parameter of the port that is made of the original's: concatenated, transposed, cut, scaled.

    ``join`` is the axis to concatenate along, or a linear function of the list of the original's tensors. Gradients and
    updated weights go through the same function; so do the outputs of modules, where these are what is named.
    """

    port: str
    originals: tuple[str, ...]
    join: int | Callable[[Sequence[Tensor]], Tensor] = 0

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=self.join) if isinstance(self.join, int) else self.join(tensors)


def transposed(original: str, port: str) -> Fused:
    """The port stores the matrix the other way round."""
    return Fused(port, (original,), lambda tensors: tensors[0].T)


@dataclass(frozen=True)
class Replicated:
    """A parameter or module of the original that the port has more than once, all of them starting as it does.

    The sum of the copies' gradients is held against the original's.
    """

    original: str
    ports: tuple[str, ...]


class NameMap:
    """The original's names to the port's.

    Args:
        prefixes: of modules and parameters, ``{"self_attn": "attention", "mlp.up_proj": "mlp.w3"}``. The longest one
            that fits a name counts; names that no prefix fits are the same on both sides. None says that the port has
            no counterpart; the empty string stands before every name, ``WHOLE`` is the module itself and no other.
        fused: parameters of the port that are made of several of the original's, or of one in another layout. Where
            the port has a parameter by its source's own name too, that one is compared as well.
        only_port: prefixes that the original lacks.
        replicated: parameters and modules that the port has more than once.
        calls: single calls, ``{"block#0": "first#0", "block#1": "second#0"}`` where one module is called twice against
            two modules, or the other way round; what is called inside goes along. None: the port makes no such call.
        arguments: ``{"hidden_states": "x", "attention.mask": "bias"}``, of all modules or of one of the original's.

    Raises:
        InputError: several names come to one, or a call is not ``module#number``.
    """

    def __init__(
        self,
        prefixes: Mapping[str, str | None] | None = None,
        fused: Iterable[Fused] = (),
        only_port: Iterable[str] = (),
        replicated: Iterable[Replicated] = (),
        calls: Mapping[str, str | None] | None = None,
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        self.prefixes = dict(prefixes or {})
        self.fused = {entry.port: entry for entry in fused}
        self.only_port = tuple(only_port)
        self.replicated = tuple(replicated)
        self.calls = {
            _split(key): _split(target) if target is not None else None for key, target in (calls or {}).items()
        }
        self.arguments = dict(arguments or {})
        targets = [target for target in self.prefixes.values() if target is not None]
        twice = sorted({target for target in targets if targets.count(target) > 1})
        if twice:
            raise InputError("name map", twice[0], "several of the original's names", "one; Fused takes several")
        self._table = {name: "" if target == WHOLE else target for name, target in self.prefixes.items()}
        self._whole = self._table.pop(WHOLE, self._table.get("", None if "" in self._table.values() else ""))
        if self._table.get("", "") is None:  # the module itself has no counterpart, and that says nothing of its parts
            del self._table[""]

    def to_port(self, name: str) -> str | None:
        """The port's name of a module or parameter of the original; None where it has none."""
        fitting = [prefix for prefix in self._table if below(name, prefix)]
        if name == WHOLE:
            target, rest = self._whole, ""
        elif fitting:
            prefix = max(fitting, key=len)
            target, rest = self._table[prefix], name[len(prefix) :].lstrip(".")
        else:
            return name
        return None if target is None else dotted(target, rest) or WHOLE

    def copies(self, name: str) -> list[str]:
        """The port's names of something that it has more than once; none where it has it once."""
        entries = [entry for entry in self.replicated if below(name, entry.original)]
        return [f"{port}{name[len(entry.original) :]}" for entry in entries for port in entry.ports]

    def targets(self, name: str, port: Collection[str] | None = None) -> list[str]:
        """All names that a parameter of the original has in the port, as far as it comes over as it is.

        The source of a ``Fused`` also comes over under its own name, where the port (if given) has that.
        """
        plain = self.copies(name) or [target for target in (self.to_port(name),) if target is not None]
        if any(name in entry.originals for entry in self.fused.values()):
            plain = [target for target in plain if target not in self.fused and (port is None or target in port)]
        return plain

    def parameters(self, originals: Mapping[str, Tensor], port: Collection[str] | None = None) -> dict[str, Tensor]:
        """The original's tensors as the port would hold them, by the port's names.

        Args:
            originals: by the original's names.
            port: the names that the port has; without them nothing is left out that it might have.

        Raises:
            InputError: two different ones of the original's come to the same name.
        """
        whole = [entry for entry in self.fused.values() if all(name in originals for name in entry.originals)]
        made = {entry.port: entry([originals[name] for name in entry.originals]) for entry in whole}
        return {**self.rename(originals, port), **made}

    def rename(self, originals: Mapping[str, Held], port: Collection[str] | None = None) -> dict[str, Held]:
        """Anything held by parameter, by the port's names; what is fused is left out.

        Raises:
            InputError: two come to the same name.
        """
        found: dict[str, tuple[str, Held]] = {}
        for name, value in originals.items():
            for target in self.targets(name, port):
                first, held = found.setdefault(target, (name, value))
                tied = isinstance(held, Tensor) and isinstance(value, Tensor) and torch.equal(held, value)
                if first != name and not tied:
                    raise _collision(target, first, name)
        return {target: value for target, (_, value) in found.items()}

    def gradients(
        self,
        originals: Mapping[str, Tensor],
        found: Mapping[str, Tensor],
        port: Collection[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both sides' gradients by the port's names, those of copies as one sum, under the first copy's name.

        ``originals`` and ``port`` are :meth:`parameters`', ``found`` the port's own.
        """
        mine, theirs = self.parameters(originals, port), dict(found)
        for name in originals:
            copies = self.copies(name)
            summands = [theirs.pop(copy) for copy in copies if copy in theirs]
            if summands:
                theirs[copies[0]] = torch.stack(summands).sum(0)
            for copy in copies[1:]:
                mine.pop(copy, None)
        return mine, theirs

    def parameter_names(self, originals: Sequence[str], port: Collection[str] | None = None) -> tuple[str, ...]:
        """The names that :meth:`parameters` gives."""
        known = set(originals)
        plain = [target for name in originals for target in self.targets(name, port)]
        fused = [name for name, entry in self.fused.items() if known.issuperset(entry.originals)]
        return tuple(dict.fromkeys([*plain, *fused]))

    def call_keys(self, keys: Sequence[str]) -> dict[str, str]:
        """The original's calls, in the order in which they ended, each with the port's; those without one are left out.

        Calls inside those of the call map are numbered anew, in the order of the calls around them.

        Raises:
            InputError: two modules come to the same one without a call map.
        """
        found: dict[str, str] = {}
        modules: dict[str, str] = {}
        waiting: list[str] = []  # calls inside of one that has not ended yet
        inside: list[tuple[int, str, str]] = []
        for key in keys:
            module, number = _split(key)
            target = self.to_port(module)
            if (module, number) in self.calls:
                if (call := self.calls[module, number]) is not None:
                    name, at = call
                    found[key] = f"{name}#{at}"
                    inside += [(at, name + _split(one)[0][len(module) :], one) for one in waiting if below(one, module)]
                waiting = [one for one in waiting if not below(one, module)]
            elif any(module != mapped and below(module, mapped) for mapped, _ in self.calls):
                waiting.append(key)
            elif target is not None:
                if modules.setdefault(target, module) != module:
                    raise _collision(target, modules[target], module)
                found[key] = f"{target}#{number}"
        counts: Counter[str] = Counter()
        for _, name, key in sorted(inside, key=lambda entry: entry[0]):
            found[key] = f"{name}#{counts[name]}"
            counts[name] += 1
        return found

    def fused_calls(self, original: Trace) -> dict[tuple[str, str], dict[str, Tensor]]:
        """Tensors of calls of modules that the port joins in one, by name, by such a call and its last part's key.

        The parts are given one and the same; call n is made of the call n of each.
        """
        order, found = {key: at for at, key in enumerate(original.calls)}, {}
        for entry in self.fused.values():
            for key in (key for key in original.calls if _split(key)[0] == entry.originals[0]):
                parts = [f"{name}#{_split(key)[1]}" for name in entry.originals]
                outs = [original.tensors.get(f"{CALLS}{part}.out") for part in parts]
                if all(out is not None for out in outs):
                    call = f"{entry.port}#{_split(key)[1]}"
                    into = original.group(f"{CALLS}{key}.into")
                    tensors = {f"{CALLS}{call}.into{place}": value for place, value in into.items()}
                    tensors[f"{CALLS}{call}.out"] = entry(cast(list[Tensor], outs))
                    found[call, max(parts, key=order.__getitem__)] = tensors
        return found

    def spread(self, spread: Spread, original: Trace, port: Collection[str] | None = None) -> Spread:
        """What one rounding does to the original, as :mod:`parity.allowed` has it, by the port's names.

        What is fused has the largest of its parts'.
        """
        calls, found = self.call_keys(original.calls), {DRAWN: spread[DRAWN]} if DRAWN in spread else {}
        for group in ("grad.", "after.", "final."):
            held = {name[len(group) :]: sizes for name, sizes in spread.items() if name.startswith(group)}
            found |= {f"{group}{name}": sizes for name, sizes in self.rename(held, port).items()}
            for entry in self.fused.values():
                parts = [held[name] for name in entry.originals if name in held]
                found |= {f"{group}{entry.port}": max(parts, key=max)} if parts else {}
        rest = {
            name: sizes for name, sizes in spread.items() if not name.startswith(("grad.", "after.", "final.", DRAWN))
        }
        renamed = {new: one for name, one in rest.items() if (new := _renamed(f"mb0.{name}", self, calls)) is not None}
        return {**found, **{name[4:]: sizes for name, sizes in renamed.items()}}

    def argument(self, module: str, place: str) -> str:
        """The port's name of a place among the arguments of a module of the original."""
        first, dot, rest = place.partition(".")
        new = self.arguments.get(f"{module}.{first}", self.arguments.get(first, first))
        return f"{new}{dot}{rest}"

    def expected_of(self, name: str) -> bool:
        """Has the original a counterpart of this name of the port?"""
        return not any(below(name, prefix) for prefix in self.only_port)


def _collision(target: str, first: str, second: str) -> InputError:
    return InputError("name map", target, f"{first} and {second} of the original", "one of them, or None")


def _split(key: str) -> tuple[str, int]:
    """``module#number``; without a number, the first call."""
    module, _, number = key.partition("#")
    if not module or not (number or "0").isdecimal():
        raise InputError("name map", "calls", key, "module#number")
    return module, int(number or 0)


def as_map(names: NameMap | Mapping[str, str | None] | None) -> NameMap:
    """A map from what users hand in."""
    return names if isinstance(names, NameMap) else NameMap(names)


def align(original: Trace, port: Trace, names: NameMap) -> tuple[Trace, Trace]:
    """Two traces under the same names: the original's as if the port's names were its own, copies' gradients summed.

    Raises:
        InputError: two modules or parameters come to the same name.
    """
    grads = [f"mb{j}.grad." for j in original.micro_batches()]
    groups = {prefix: (original.group(prefix), port.group(prefix)) for prefix in (*STATE_PREFIXES, *grads)}
    known = known_to(port)
    for prefix, (mine, theirs) in groups.items():
        summed = names.gradients(mine, theirs, known) if prefix in grads else (names.parameters(mine, known), theirs)
        groups[prefix] = summed
    sides = [
        {f"{prefix}{name}": one for prefix, pair in groups.items() for name, one in pair[n].items()} for n in (0, 1)
    ]
    rest = [
        {name: tensor for name, tensor in trace.tensors.items() if not name.startswith(tuple(groups))}
        for trace in (original, port)
    ]
    calls = names.call_keys(original.calls)
    made = names.fused_calls(original)
    renamed = {new: one for name, one in rest[0].items() if (new := _renamed(name, names, calls)) is not None}
    aligned = replace(
        original,
        tensors={**sides[0], **renamed, **{name: one for call in made.values() for name, one in call.items()}},
        trained=names.parameter_names(original.trained, known),
        frozen=names.parameter_names(original.frozen, known),
        calls=tuple(
            key
            for one in original.calls
            for key in (calls.get(one), *(key for key, last in made if last == one))
            if key
        ),
    )
    return aligned, replace(port, tensors={**rest[1], **sides[1]})


def known_to(trace: Trace) -> set[str]:
    """Every parameter and buffer that a trace names."""
    prefixes = (*STATE_PREFIXES, *(f"mb{j}.grad." for j in trace.micro_batches()))
    return {*trace.trained, *trace.frozen}.union(*(trace.group(prefix) for prefix in prefixes))


def _renamed(name: str, names: NameMap, calls: Mapping[str, str]) -> str | None:
    """A tensor's new name; None for calls without a counterpart."""
    call = CALL.fullmatch(name)
    if call is None:
        return name
    key, place = calls.get(f"{call['module']}#{call['number']}"), call["place"] or ""
    place = names.argument(call["module"], place) if call["kind"].startswith("into") else place
    return None if key is None else dotted(f"{CALLS}{key}.{call['kind']}", place)
