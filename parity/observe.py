"""A run observed: calls of modules, values that taps show, and what was drawn at random.

``tap`` gives back what it is given; inside a run it also keeps the value and its gradient. What is looked at stays the
same object, so that what is computed stays the same. Functions of an original that must not be edited are tapped from
outside. Draws of one side are recorded and replayed in the other.
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
from types import ModuleType
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from parity.calls import Call, SentBack, below, keep, keep_calls, open_ended, snapshot, tensors_of, watch, with_tensors
from parity.errors import InputError
from parity.trace import Trace

Value = TypeVar("Value")
Taps = Mapping[str, Sequence[str] | Mapping[str, str]]
"""``package.module.function`` to ``returned`` or arguments, as they are or each with the name that its tap gets.

What is inside of one has dots: ``outputs.logits``, ``returned.1.ce_loss``.
"""

RETURNED = "returned"


@dataclass
class Observation:
    """What one forward showed; gradients once a backward has run. Keys are ``name#n``, counted from 0.

    ``over``: the forward has ended. What activation checkpointing calls again in the backward is no call of its own.
    """

    calls: list[Call] = field(default_factory=list)
    taps: dict[str, Tensor] = field(default_factory=dict)
    tap_grads: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    samplers: dict[Draw, Callable[[], Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    over: bool = False
    unrolled: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))

    def tap(self, name: str, value: Any, inside: str = "") -> None:
        """Keep the tensors of a value, each under its place if there are several.

        Or the one that has the place ``inside``; InputError where nothing has.
        """
        keep(_inside(name, value, inside), self.taps, self.tap_grads, self.key(name))

    def tap_argument(self, name: str, value: Any, inside: str = "") -> SentBack:
        """The same of an argument, whose gradient is what the function alone sends back."""
        value, key = _inside(name, value, inside), self.key(name)
        keep(value, self.taps, None, key)
        return SentBack(value, self.tap_grads, key)

    def key(self, name: str) -> str:
        self.counts[name] += 1
        return f"{name}#{self.counts[name] - 1}"

    def keep_paths(self, trace: Trace) -> None:
        """Put losses of steps and how they reach states into a trace, before the backward, which begins anew."""
        trace.keep("mb0.path", path_norms(*self.unrolled))
        for step, loss in enumerate(self.unrolled[0]):
            trace.keep(f"mb0.step{step}", {"loss": loss.detach().reshape(1)})
        for grads in (self.tap_grads, *(held for call in self.calls for held in (call.into_grad, call.out_grad))):
            grads.update({at: torch.zeros_like(grad) for at, grad in grads.items()})

    def keep(self, trace: Trace) -> None:
        """Put calls and taps into a trace."""
        keep_calls(trace, self.calls)
        for group, tensors in (("tap", self.taps), ("tap_grad", self.tap_grads)):
            trace.tensors.update({f"mb0.{group}.{key}": tensor for key, tensor in tensors.items()})


_RUNNING: ContextVar[Observation | None] = ContextVar("observation", default=None)


def tap(name: str, value: Value) -> Value:
    """``value`` itself; inside a run, its tensors are kept with their gradients and compared by this name.

    For what no module gives out: labels, masks, the terms of a loss. Called several times it has numbers from 0.
    """
    running = _RUNNING.get()
    if running is not None:
        running.tap(name, value)
    return value


def unrolled(losses: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    """Say that a draft runs on its own output: the loss of each step, and the state [..., h] that enters it.

    Called in a loss or a forward. Inside a run, how strongly each loss reaches each earlier state is the check
    ``cross_step_grad``; what every step's loss is, a row of ``loss``.
    """
    running = _RUNNING.get()
    if running is not None:
        running.unrolled = [*losses], [*states]


def path_norms(losses: Sequence[Tensor], states: Sequence[Tensor]) -> dict[str, Tensor]:
    """|d loss_s / d hidden_i| for every i <= s, named ``s.i``; zero where no path leads.

    ``hidden_i`` is the state that enters step i. The graph is kept for the backward that follows.
    """
    norms = {f"{s}.{i}": torch.zeros(1) for s in range(len(losses)) for i in range(s + 1)}
    for s, loss in enumerate(losses):
        entered = {i: state for i, state in enumerate(states[: s + 1]) if state.requires_grad and loss.requires_grad}
        inputs = [*entered.values()]
        grads = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True) if inputs else ()
        norms |= {f"{s}.{i}": grad.double().norm().reshape(1) for i, grad in zip(entered, grads)}
    return norms


def _inside(name: str, value: Any, place: str) -> Any:
    """The tensor that has this place in a value, the value itself by the empty one."""
    tensors: dict[str, Any] = tensors_of(value) if place else {"": value}
    if place not in tensors:
        raise InputError("tap", name, f"nothing at {place}", f"one of {', '.join(tensors)}")
    return tensors[place]


@dataclass(frozen=True)
class Draw:
    """Something that both sides draw at random, compared as samplers and then replayed.

    Args:
        name: of the draw.
        original, port: the function whose return value is drawn, ``package.module:function`` or a method; of torch's
            own, as ``torch:randperm``, with ``@package.module`` or ``@package.module:function`` where it is called.
        given: the original's tensor as the port draws it, where they differ in more than dimensions of one.
        values: the entries drawn, of the first tensor: by default its numbers, or where a mask is true. A function of
            several is given as many: ``lambda anchors, depths: 100 * anchors + depths``.
        seeds: how many the samplers are compared over, each called as in the run's first draw; 0: they are not.
    """

    name: str
    original: str
    port: str
    given: Callable[[Tensor], Tensor] = lambda drawn: drawn
    values: Callable[..., Tensor] | None = None
    seeds: int = 200


@contextlib.contextmanager
def observe(module: nn.Module, taps: Taps | None = None) -> Iterator[Observation]:
    """Observe the calls of a module and its parts, and what taps show; ``taps`` are functions to tap from outside.

    Raises:
        InputError: a tap names no function.
    """
    seen = Observation()
    with contextlib.ExitStack() as stack:
        for function, words in (taps or {}).items():
            stack.enter_context(replaced(function, functools.partial(_tapped, seen, function, words)))
        stack.callback(_RUNNING.reset, _RUNNING.set(seen))
        seen.calls = stack.enter_context(watch(module))
        yield seen
        seen.over = True


@contextlib.contextmanager
def drawing(draws: Mapping[Draw, str], replayed: Mapping[str, Tensor] | None = None) -> Iterator[Observation]:
    """Record and replay draws, through as many forwards as the body makes.

    Args:
        draws: each with the function that draws it on this side, ``draw.original`` or ``draw.port``.
        replayed: the draws of another run, by ``Observation.draws``' keys; what they hold is drawn here too.

    Raises:
        InputError: a draw names no function.
    """
    seen = Observation()
    with contextlib.ExitStack() as stack:
        for draw, target in draws.items():
            function, _, site = target.partition("@")
            stack.enter_context(replaced(function, functools.partial(_drawn, seen, draw, site, replayed)))
        yield seen


def _tapped(
    seen: Observation, target: str, words: Sequence[str] | Mapping[str, str], function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that shows some of its arguments and what it returns."""
    short, signature = target.replace(":", ".").rpartition(".")[2], inspect.signature(function)
    names = dict(words) if isinstance(words, Mapping) else {word: f"{short}.{word}" for word in words}
    rest = open_ended(signature)
    paths = [(name, *word.partition(".")[::2]) for word, name in names.items()]
    odd = [word for _, word, _ in paths if word not in (RETURNED, *signature.parameters) and not rest]
    if odd:
        raise InputError(
            "tap", target, odd[0], f"{RETURNED} or one of its arguments: {', '.join(signature.parameters)}"
        )

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if seen.over:
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs).arguments
        held = {**bound.get(rest, {}), **bound}
        sent = [seen.tap_argument(name, held[word], inside) for name, word, inside in paths if word in held]
        out = function(*args, **kwargs)
        for one in sent:
            one.by((args, kwargs, out))
        for name, _, inside in (path for path in paths if path[1] == RETURNED):
            seen.tap(name, out, inside)
        return out

    return wrapper


@contextlib.contextmanager
def replaced(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``wrap(function)`` in a function's place, wherever it has been imported; all is restored at the end.

    Raises:
        InputError: there is no such function.
    """
    owner, attribute, held = found_at(target)
    kind = type(held) if isinstance(held, (staticmethod, classmethod)) else None
    new = kind(wrap(held.__func__)) if kind else wrap(held)
    with contextlib.ExitStack() as stack:
        for place, name in _places(owner, attribute, held):
            stack.enter_context(mock.patch.object(place, name, new))
        yield


def found_at(target: str) -> tuple[Any, str, Any]:
    """The module or class that has a function, its name there, and the function as it is held: a classmethod as one.

    Raises:
        InputError: there is no such function.
    """
    owner_name, _, attribute = target.replace(":", ".").rpartition(".")
    try:
        owner = pkgutil.resolve_name(owner_name)
        return owner, attribute, inspect.getattr_static(owner, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError("tap or draw", "function", target, "package.module.function, which can be imported") from error


ALIASES: dict[tuple[Any, str], tuple[list[Any], list[int], list[tuple[Any, str]]]] = {}
"""By a function's module and name, all modules of a moment, how many names each had, and which had one of its names."""


def _places(owner: Any, attribute: str, held: object) -> list[tuple[Any, str]]:
    """Where a function is to be found now: where it was defined, or by any name in any module.

    To look at every name takes 30 ms, and a study replaces functions a thousand times. So they are looked at when a
    module or a name has come or gone; else what has one of the function's names is, whatever it held the last time.
    """
    if not inspect.ismodule(owner):
        return [(owner, attribute)]
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    counts = list(map(len, map(vars, modules)))
    *then, named = ALIASES.get((owner, attribute), ([], [], []))
    if then != [modules, counts]:
        named = _named(modules, {attribute} | {name for _, name in named}, held)
        ALIASES[owner, attribute] = modules, counts, named
    return [(module, name) for module, name in named if vars(module)[name] is held]


def _named(modules: Sequence[Any], names: set[str], held: object) -> list[tuple[Any, str]]:
    """Every module that has one of ``names``, or of those by which another module holds the function."""
    names = names | {name for module in modules for name, value in list(vars(module).items()) if value is held}
    return [(module, name) for module in modules for name in names & vars(module).keys()]


def _drawn(
    seen: Observation, draw: Draw, site: str, replayed: Mapping[str, Tensor] | None, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function whose draws are kept, or taken from another run; one that draws in place has them written there."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = None if draw in seen.samplers else functools.partial(function, *snapshot(args), **snapshot(kwargs))
        own = function(*args, **kwargs)
        if site and not _called_from(site, sys._getframe(1)):
            return own
        if first is not None:
            seen.samplers[draw] = first
        key, out = seen.key(draw.name), own
        if replayed:
            out = _filled(own, [value for name, value in replayed.items() if below(name, key)], key)
        seen.draws.update({place: tensor.detach().clone() for place, tensor in tensors_of(out, key).items()})
        return own.copy_(out) if args and own is args[0] else out

    return wrapper


def port_draws(draws: Iterable[Draw], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the original drew, by ``Observation.draws``' keys, in the port's layout."""
    layouts = {draw.name: draw.given for draw in draws}
    return {name: layouts[word](value) for name, value in drawn.items() if (word := name.partition("#")[0]) in layouts}


def _called_from(site: str, frame: Any) -> bool:
    module, _, function = site.partition(":")
    return frame.f_globals.get("__name__") == module and function in ("", frame.f_code.co_name)


def _filled(own: Any, recorded: Sequence[Tensor], key: str) -> Any:
    """The side's own draw with the recorded tensors in its tensors' places."""
    values = iter(recorded)

    def fill(tensor: Tensor) -> Tensor:
        value = next(values, None)
        value = value if value is None else laid_out(value, tensor)
        lists = value is not None and value.dim() == tensor.dim() == 1
        if value is None or not (lists or value.shape == tensor.shape):
            found = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise InputError("replay", key, found, f"shape {tuple(tensor.shape)}; Draw(given=...) says how they differ")
        return value.to(tensor)

    return with_tensors(own, fill)


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """In the other's shape, where the two differ in dimensions of one alone; a list of another length as a list."""
    sizes = [[size for size in tensor.shape if size != 1] for tensor in (value, like)]
    if sizes[0] == sizes[1]:
        return value.reshape(like.shape)
    return value.flatten() if like.dim() == 1 and len(sizes[0]) == 1 else value
