"""A run observed: calls of modules, values that taps show, and what was drawn at random.

``tap`` gives back what it is given; inside a run it also keeps the value and its gradient. Functions of an original
that must not be edited are tapped from outside. Draws of one side are recorded and replayed in the other.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from parity.calls import Call, catch, keep_call, own_view, tensors_of, watch, with_tensors
from parity.errors import InputError
from parity.trace import Trace

Value = TypeVar("Value")
Taps = Mapping[str, Sequence[str] | Mapping[str, str]]
"""``package.module.function`` to ``returned`` or arguments, as they are or each with the name that its tap gets."""

RETURNED = "returned"
SIGNIFICANT = 4.5
"""Standard errors: two equal samplers with a thousand candidates exceed it once in 150 comparisons."""


@dataclass
class Observation:
    """What one forward showed; gradients once a backward has run. Keys are ``name#n``, counted from 0."""

    calls: list[Call] = field(default_factory=list)
    taps: dict[str, Tensor] = field(default_factory=dict)
    tap_grads: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def tap(self, name: str, value: Any) -> Any:
        """Keep the tensors of a value, each under its place if there are several, and give them back."""
        key = self.key(name)
        if isinstance(value, Tensor):
            value = own_view(value)
            self._keep(key, value)
            return value
        value = with_tensors(value, own_view)
        for place, tensor in tensors_of(value).items():
            self._keep(f"{key}.{place}", tensor)
        return value

    def key(self, name: str) -> str:
        self.counts[name] += 1
        return f"{name}#{self.counts[name] - 1}"

    def _keep(self, key: str, tensor: Tensor) -> None:
        self.taps[key] = tensor.detach().clone()
        catch(tensor, self.tap_grads, key)

    def keep(self, trace: Trace) -> None:
        """Put everything into a trace."""
        trace.calls = tuple(call.key for call in self.calls)
        for call in self.calls:
            keep_call(trace, call)
        for group, tensors in (("tap", self.taps), ("tap_grad", self.tap_grads), ("draw", self.draws)):
            trace.tensors.update({f"mb0.{group}.{key}": tensor for key, tensor in tensors.items()})


_RUNNING: ContextVar[Observation | None] = ContextVar("observation", default=None)


def tap(name: str, value: Value) -> Value:
    """``value`` itself; inside a run, its tensors are kept with their gradients and compared by this name.

    For what no module gives out: labels, masks, the terms of a loss. Called several times it has numbers from 0.
    """
    running = _RUNNING.get()
    return value if running is None else running.tap(name, value)


@dataclass(frozen=True)
class Draw:
    """Something that both sides draw at random, compared as samplers and then replayed.

    Args:
        name: of the draw.
        original, port: the function whose return value is drawn, ``package.module:function`` or a method; of torch's
            own, as ``torch:randperm``, with ``@package.module`` or ``@package.module:function`` where it is called.
        given: the original's tensor as the port draws it, where they differ in layout.
        values: the entries drawn, of the returned value: by default its whole numbers, or where its masks are true.
    """

    name: str
    original: str
    port: str
    given: Callable[[Tensor], Tensor] = lambda drawn: drawn
    values: Callable[[Any], Tensor] | None = None


@contextlib.contextmanager
def observe(
    module: nn.Module,
    taps: Taps | None = None,
    draws: Mapping[Draw, str] | None = None,
    replayed: Mapping[str, Tensor] | None = None,
    own_inputs: bool = True,
) -> Iterator[Observation]:
    """Observe a forward.

    Args:
        module: the whole, whose calls are watched.
        taps: functions to tap from outside.
        draws: each with the function that draws it on this side, ``draw.original`` or ``draw.port``.
        replayed: the draws of another run, by ``Observation.draws``' keys; what they hold is drawn here too.
        own_inputs: see :func:`parity.calls.watch`.

    Raises:
        InputError: a tap or a draw names no function.
    """
    seen = Observation()
    with contextlib.ExitStack() as stack:
        for function, words in (taps or {}).items():
            stack.enter_context(replaced(function, functools.partial(_tapped, seen, function, words)))
        for draw, target in (draws or {}).items():
            stack.enter_context(_drawn(seen, draw, target, replayed))
        token = _RUNNING.set(seen)
        stack.callback(_RUNNING.reset, token)
        seen.calls = stack.enter_context(watch(module, own_inputs=own_inputs))
        yield seen


@contextlib.contextmanager
def drawing(draws: Mapping[Draw, str], replayed: Mapping[str, Tensor] | None = None) -> Iterator[Observation]:
    """Record and replay draws alone, through as many forwards as the body makes."""
    seen = Observation()
    with contextlib.ExitStack() as stack:
        for draw, target in draws.items():
            stack.enter_context(_drawn(seen, draw, target, replayed))
        yield seen


def _tapped(
    seen: Observation, target: str, words: Sequence[str] | Mapping[str, str], function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that shows some of its arguments and what it returns."""
    short, signature = target.replace(":", ".").rpartition(".")[2], inspect.signature(function)
    names = dict(words) if isinstance(words, Mapping) else {word: f"{short}.{word}" for word in words}
    rest = next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), "")
    odd = [word for word in names if word not in (RETURNED, *signature.parameters) and not rest]
    if odd:
        raise InputError(
            "tap", target, odd[0], f"{RETURNED} or one of its arguments: {', '.join(signature.parameters)}"
        )

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for word, name in names.items():
            held = bound.arguments if word in bound.arguments else bound.arguments.get(rest, {})
            if word in held:
                held[word] = seen.tap(name, held[word])
        out = function(*bound.args, **bound.kwargs)
        return seen.tap(names[RETURNED], out) if RETURNED in names else out

    return wrapper


@contextlib.contextmanager
def replaced(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``wrap(function)`` in a function's place, wherever it has been imported; all is restored at the end.

    Raises:
        InputError: there is no such function.
    """
    owner_name, _, attribute = target.replace(":", ".").rpartition(".")
    try:
        owner = pkgutil.resolve_name(owner_name)
        held = inspect.getattr_static(owner, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError("tap or draw", "function", target, "package.module.function, which can be imported") from error
    kind = type(held) if isinstance(held, (staticmethod, classmethod)) else None
    new = kind(wrap(held.__func__)) if kind else wrap(held)
    with contextlib.ExitStack() as stack:
        for place, name in _places(owner, attribute, held):
            back = setattr if name in vars(place) else lambda place, name, _: delattr(place, name)
            stack.callback(back, place, name, held)
            setattr(place, name, new)
        yield


def _places(owner: Any, attribute: str, held: object) -> list[tuple[Any, str]]:
    """Where a function is to be found: where it was defined, and in modules that imported it by name."""
    modules = [module for module in list(sys.modules.values()) if inspect.ismodule(owner) and module is not None]
    copies = [(module, name) for module in modules for name, value in list(vars(module).items()) if value is held]
    return [(owner, attribute), *(copy for copy in copies if copy != (owner, attribute))]


@contextlib.contextmanager
def _drawn(seen: Observation, draw: Draw, target: str, replayed: Mapping[str, Tensor] | None) -> Iterator[None]:
    def taken(out: Any) -> Any:
        key = seen.key(draw.name)
        if replayed is not None:
            out = _filled(out, {name: draw.given(value) for name, value in replayed.items() if _of(name, key)}, key)
        for place, tensor in tensors_of(out).items():
            seen.draws[".".join(filter(None, (key, place)))] = tensor.detach().clone()
        return out

    with _intercepted(target, taken):
        yield


def _of(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")


@contextlib.contextmanager
def _intercepted(target: str, taken: Callable[[Any], Any]) -> Iterator[None]:
    """``taken`` of what a function returns takes its place; of one that draws in place, it is written there."""
    function_name, _, site = target.partition("@")

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            if site and not _called_from(site, sys._getframe(1)):
                return out
            new = taken(out)
            return out.copy_(new) if args and out is args[0] else new

        return wrapper

    with replaced(function_name, wrap):
        yield


def _called_from(site: str, frame: Any) -> bool:
    module, _, function = site.partition(":")
    return frame.f_globals.get("__name__") == module and function in ("", frame.f_code.co_name)


def _filled(own: Any, recorded: Mapping[str, Tensor], key: str) -> Any:
    """The side's own draw with the recorded tensors in its tensors' places."""
    values = iter(recorded.values())

    def fill(tensor: Tensor) -> Tensor:
        value = next(values, None)
        if value is None or value.shape != tensor.shape:
            found = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise InputError("replay", key, found, f"shape {tuple(tensor.shape)}; Draw(given=...) says how they differ")
        return value.to(tensor)

    return with_tensors(own, fill)


def sampled(draw: Draw, target: str, run: Callable[[], Any], seeds: Iterable[int] = range(200)) -> list[Tensor]:
    """The entries that one side draws, under one seed after the other.

    Args:
        draw: how entries are read.
        target: ``draw.original`` or ``draw.port``.
        run: whatever calls it: a forward, or the function alone.
        seeds: set before each.
    """
    found: list[Tensor] = []
    read = draw.values or _entries

    def taken(out: Any) -> Any:
        found.append(read(out).detach().flatten().cpu())
        return out

    with _intercepted(target, taken), torch.no_grad():
        for seed in seeds:
            set_seed(seed)
            run()
    return found


def _entries(drawn: Any) -> Tensor:
    first = next(iter(tensors_of(drawn).values()), torch.zeros(0))
    return first.nonzero()[:, -1] if first.dtype == torch.bool else first


class Compared(NamedTuple):
    """A row in the making: what ``Subject.row`` takes."""

    quantity: str
    tensor: str
    measured: float | None
    allowed: float | None
    passed: bool
    detail: str = ""


def compare_samplers(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[Compared]:
    """Two samplers as such: how many entries a draw has, which ever come, and how often.

    Numbers are compared in standard errors; what only one side draws counts when that is more than chance.
    """
    if not expected or not found:
        return [Compared("draws", name, None, 0.0, False, f"drawn {len(found)} times, expected {len(expected)}")]
    rows = [_means("number drawn", name, *([float(len(draw)) for draw in side] for side in (expected, found)))]
    if any(draw.is_floating_point() for draw in (*expected, *found)):
        means = [[float(draw.double().mean()) for draw in side if len(draw)] for side in (expected, found)]
        spreads = [[float(draw.double().std()) for draw in side if len(draw) > 1] for side in (expected, found)]
        return [*rows, _means("mean", name, *means), _means("std", name, *spreads)]
    counts = [Counter(int(entry) for draw in side for entry in draw.unique()) for side in (expected, found)]
    errors = {entry: _error(counts, (len(expected), len(found)), entry) for entry in sorted({*counts[0], *counts[1]})}
    only = [[entry for entry in mine if not other[entry]] for mine, other in (counts, counts[::-1])]
    sure = [entry for entry in (*only[0], *only[1]) if errors[entry] > SIGNIFICANT]
    words = (f"only {side}: {', '.join(map(str, sorted(own)))}" for side, own in zip(("original", "port"), only) if own)
    detail = "; ".join([f"{len(counts[0])} / {len(counts[1])} candidates", *words])
    rows.append(Compared("candidates", name, float(len(sure)), 0.0, not sure, detail))
    shared = {entry: error for entry, error in errors.items() if entry not in {*only[0], *only[1]}}
    worst = max(shared, key=lambda entry: shared[entry], default=None)
    if worst is None:
        return rows
    often = [side[worst] / len(draws) for side, draws in zip(counts, (expected, found))]
    detail = f"{worst} in {often[0]:.3f} / {often[1]:.3f} of the draws"
    return [*rows, Compared("frequency", name, shared[worst], SIGNIFICANT, shared[worst] <= SIGNIFICANT, detail)]


def _error(counts: Sequence[Counter[int]], draws: tuple[int, int], entry: int) -> float:
    """The difference of two frequencies in its standard errors."""
    first, second = counts[0][entry], counts[1][entry]
    chance = (first + second) / sum(draws)
    error = (chance * (1 - chance) * (1 / draws[0] + 1 / draws[1])) ** 0.5
    return abs(first / draws[0] - second / draws[1]) / error if error else 0.0


def _means(quantity: str, name: str, expected: Sequence[float], found: Sequence[float]) -> Compared:
    sides = [torch.tensor(side, dtype=torch.float64) for side in (expected, found)]
    means = [float(side.mean()) for side in sides]
    error = float(sum(side.var(correction=0) / len(side) for side in sides)) ** 0.5
    gap = abs(means[0] - means[1])
    measured = 0.0 if gap == 0 else gap / error if error else float("inf")
    return Compared(quantity, name, measured, SIGNIFICANT, measured <= SIGNIFICANT, f"{means[0]:.6g} / {means[1]:.6g}")
