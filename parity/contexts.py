"""Contexts that a side's callables run in, each once, however the callables call one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import Any

from parity.step import Clip

Enter = Callable[[], AbstractContextManager[Any]]

CALLED = ("build", "loss", "optimizer", "schedule", "step", "load")
"""What a side of callables runs."""

_ENTERED: ContextVar[tuple[Enter, ...]] = ContextVar("entered", default=())


@contextmanager
def entered(contexts: Sequence[Enter]) -> Iterator[None]:
    """In all of them, the last one outermost; one that is entered already is not entered again."""
    with ExitStack() as stack:
        for enter in reversed(contexts):
            if enter not in _ENTERED.get():
                stack.enter_context(enter())
                stack.callback(_ENTERED.reset, _ENTERED.set((*_ENTERED.get(), enter)))
        yield


class Inside:
    """A function that runs in contexts."""

    def __init__(self, function: Callable[..., Any], contexts: Sequence[Enter]) -> None:
        own = function.contexts if isinstance(function, Inside) else ()
        update_wrapper(self, function, updated=())
        self.function: Callable[..., Any] = function.function if isinstance(function, Inside) else function
        self.contexts: tuple[Enter, ...] = (*own, *(enter for enter in contexts if enter not in own))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """As the function's."""
        with entered(self.contexts):
            return self.function(*arguments, **named)


def enclose(side: Any, contexts: Sequence[Enter]) -> None:
    """Put what a side runs into its contexts; a ``Clip`` is data."""
    for name in CALLED if contexts else ():
        if (function := getattr(side, name)) is not None and not isinstance(function, Clip):
            object.__setattr__(side, name, Inside(function, contexts))
