"""Known differences: what the original does another way, one thing each, and how much every one explains.

A pair that has some is run with all of them switched, which must agree with the original, and besides as it is and
without each in turn: what then differs is what that one explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce, wraps
from types import MethodType
from typing import Any

from parity.checks import run_check
from parity.compare import RowKey
from parity.contexts import Enter
from parity.differences import RAISED, Difference, Ledger
from parity.errors import InputError
from parity.observe import found_at, replaced
from parity.trace_pair import Check, TracePair, raised
from parity.verdict import Row

Switch = Callable[[Any], Any]
"""From a side to one that does a thing as the original does it."""

Ask = Callable[[Any], AbstractContextManager[TracePair]]
"""From a side to its evidence against the original."""

Rows = Mapping[tuple[str, str, str], Row]
"""By check, quantity and tensor."""

MISSING = RowKey("", "", "").row("", "", None, None, True)

LEFT_OUT = ("environment", "resume", "throughput")
"""Checks whose rows no known difference can explain, or that follow from others'."""


@dataclass(frozen=True)
class KnownDifference:
    """One thing that the original does another way.

    Args:
        id: in reports.
        text: what the original does.
        patch: from the pair's port to a side that does it, too: :func:`replace_functions`, :func:`edit_module`,
            :func:`in_context`, :func:`flag`, or a function of your own, ``lambda side: replace(side, loss=mean)``.
            They follow each other.
        raises: what the port raises without it, or a part of that: ``IndexError``. What none is said to mend fails.
    """

    id: str
    text: str
    patch: Switch
    raises: str = ""


def in_context(enter: Enter) -> Switch:
    """For a side of callables: they run in a context, ``in_context(lambda: patch.object(losses, "divisor", rows))``.

    So do those that are put in their places later.
    """
    return lambda side: replace(side, contexts=(*side.contexts, enter))


@dataclass(frozen=True)
class ReplacedFunctions:
    """What :func:`replace_functions` gives. Of the functions, those that were called, and those whose own was, too."""

    functions: Mapping[str, Callable[..., Any]]
    called: set[str] = field(default_factory=set)
    passed_on: set[str] = field(default_factory=set)

    def __call__(self, side: Any) -> Any:
        return in_context(self._enter)(side)

    @contextmanager
    def _enter(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target in self.functions:
                of_class = isinstance(found_at(target)[2], classmethod)
                standing_in = self._of_class if of_class else self._standing_in
                stack.enter_context(replaced(target, partial(standing_in, target)))
            yield

    def _of_class(self, target: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """For a classmethod: bound to the class, which is none of the arguments that a caller gives."""

        @wraps(real)
        def run(cls: type, *arguments: Any, **named: Any) -> Any:
            return self._standing_in(target, MethodType(real, cls))(*arguments, **named)

        return run

    def _standing_in(self, target: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def own(*arguments: Any, **named: Any) -> Any:
            self.passed_on.add(target)
            return real(*arguments, **named)

        @wraps(real)
        def run(*arguments: Any, **named: Any) -> Any:
            self.called.add(target)
            return self.functions[target](own, *arguments, **named)

        return run


def replace_functions(functions: Mapping[str, Callable[..., Any]]) -> Switch:
    """For a side of callables: while they run, others stand in functions' places, wherever these were imported.

    Each is given the one that it stands for, and its arguments: ``{"ours.losses:half": lambda real, x: 2 * real(x)}``;
    a method's first one is its object, a classmethod is bound and has no such one.
    What a function computes that its stand-in does not ask for is held by no check, see :func:`unheld`.
    """
    return ReplacedFunctions(functions)


def unheld(known: Iterable[KnownDifference]) -> list[str]:
    """A line for each function that only a stand-in ran for, so that nothing was held of what it computes."""
    return [
        f"known difference {difference.id} stands in for {target} without calling it: no check holds what that computes"
        for difference in known
        if isinstance(difference.patch, ReplacedFunctions)
        for target in sorted(difference.patch.called - difference.patch.passed_on)
    ]


def edit_module(**changes: Callable[[Any], object]) -> Switch:
    """For a side of callables: what its ``build`` or ``load`` gives is changed in place, ``edit_module(load=freeze)``.

    A side without a ``load`` opens as it does by default.
    """

    def and_then(function: Callable[..., Any], change: Callable[[Any], object], *arguments: Any) -> Any:
        found = function(*arguments)
        change(found)
        return found

    def switch(side: Any) -> Any:
        own = {name: getattr(side, name) or side.read for name in changes}
        return replace(side, **{name: partial(and_then, own[name], change) for name, change in changes.items()})

    return switch


def keep_from_build(*paths: str) -> Switch:
    """For a side of callables: what ``load`` gives has these attributes as what ``build`` gives has them.

    ``keep_from_build("lm_head.weight.requires_grad", "config._attn_implementation")``
    """

    def switch(side: Any) -> Any:
        def like_built(opened: Any) -> None:
            built = side.build()
            for *around, name in (path.split(".") for path in paths):
                owners = [reduce(getattr, around, module) for module in (built, opened)]
                setattr(owners[1], name, getattr(owners[0], name))

        return edit_module(load=like_built)(side)

    return switch


def flag(name: str) -> Switch:
    """For a side of your own: ``name`` is added to its field ``known_differences``, a frozenset."""
    return lambda side: replace(side, known_differences=side.known_differences | {name})


def switched(side: Any, known: Iterable[KnownDifference]) -> Any:
    """The side with these known differences switched, in their order."""
    return reduce(lambda found, difference: difference.patch(found), known, side)


def study(case: str, port: Any, known: Sequence[KnownDifference], ask: Ask, checks: Iterable[Check]) -> Ledger:
    """Hold the port against the original as it is, with every known difference switched, and without each.

    What a check holds the port against by itself, reopened for example, counts as well; how fast it is does not.

    What a side raises is a difference of its own, see :func:`raised_rows`.

    Raises:
        InputError: as the sides have it.
    """
    checks = [check for check in checks if check.name not in LEFT_OUT]

    def rows(chosen: Iterable[KnownDifference]) -> Rows:
        found = _rows(RowKey.of_side(case, port.name), lambda: ask(switched(port, chosen)), checks)
        failed_last = sorted(found, key=lambda row: not row.passed)
        return {(row.check, row.quantity, row.tensor): row for row in failed_last}

    plain, full = rows([]), rows(known)
    without = {difference.id: rows([other for other in known if other is not difference]) for difference in known}
    keys = dict.fromkeys(key for one in (full, plain, *without.values()) for key in one)
    lines = tuple(_difference(key, plain, full, without) for key in keys)
    return Ledger(case, port.name, {difference.id: difference.text for difference in known}, lines)


def _rows(subject: RowKey, ask: Callable[[], AbstractContextManager[TracePair]], checks: Iterable[Check]) -> list[Row]:
    try:
        with ask() as evidence:
            found = [row for check in checks for row in run_check(evidence, check)]
    except InputError:
        raise
    except Exception as error:  # whatever the code of a side raises
        return [raised(subject, error)]
    return [row for row in found if row.compared]


def _difference(key: tuple[str, str, str], plain: Rows, full: Rows, without: Mapping[str, Rows]) -> Difference:
    row = full.get(key)
    sizes = {name: _size(rows[key]) for name, rows in without.items() if key in rows and not rows[key].passed}
    left = row is not None and not row.passed
    return Difference(
        *key,
        allowed=row.allowed if row else None,
        as_it_is=_size(plain.get(key)),
        explained=_size(row),
        apart=key in plain and not plain[key].passed,
        left=left,
        because={name: size for name, size in sizes.items() if not left or size != _size(row)},
        detail=(row if row is not None and left and key[1] != RAISED else plain.get(key, MISSING)).detail,
        raised={name: rows[key].detail for name, rows in without.items() if key in rows and key[1] == RAISED},
    )


def _size(row: Row | None) -> float | None:
    """What was measured; infinite where one side alone has it or nothing is measured, and it failed."""
    measured = None if row is None or row.allowed is None else row.measured
    return math.inf if measured is None and row is not None and not row.passed else measured


def raised_rows(subject: RowKey, known: Sequence[KnownDifference], ledger: Ledger) -> list[Row]:
    """A row for each exception of the port as it is that is gone with every difference switched: is that so on purpose?

    It fails unless one without which it comes says so (``KnownDifference(raises=...)``), and each of them does: what
    one raises hides what comes after it.
    """
    lines = [line for line in ledger.lines if line.quantity == RAISED and line.apart and not line.left]
    return [_raised_row(subject, known, line) for line in lines]


def as_it_is(case: str, port: Any, known: Sequence[KnownDifference], ask: Ask) -> list[Row]:
    """Does the port run without its known differences? :func:`raised_rows` where not; no check is asked."""
    subject = RowKey.of_side(case, port.name or "port")
    if not _rows(subject, lambda: ask(port), ()):
        return [subject.row("as it is", "", None, None, True)]
    return raised_rows(subject, known, study(case, port, known, ask, ()))


def _raised_row(subject: RowKey, known: Sequence[KnownDifference], line: Difference) -> Row:
    said = {difference.id: difference.raises for difference in known if difference.id in line.raised or not line.raised}
    silent = [name for name, found in line.raised.items() if not said[name] or said[name] not in found]
    meant = not silent and any(text and text in line.detail for text in said.values())
    place = "" if line.check == subject.check else f" in {line.check}"
    words = [f"the port as it is raises{place} {line.detail}"]
    words += [f"without {name} alone {line.raised[name]}" for name in silent if line.raised[name] != line.detail]
    if not meant:
        words.append(
            f"one that mends it on purpose says so, KnownDifference(raises=...): {', '.join(silent) or 'none does'}"
        )
    return subject.row("as it is", "", None, None, meant, "; ".join(words))


def effect_rows(subject: RowKey, known: Iterable[KnownDifference], ledgers: Iterable[Ledger]) -> list[Row]:
    """A row for each known difference: does leaving it out change anything, in any of the cases?"""
    found = [name for ledger in ledgers for line in ledger.lines for name in line.because]
    details = {
        difference.id: "" if difference.id in found else f"{difference.id} explains nothing here"
        for difference in known
    }
    return [
        subject.row("effect", name, 1.0 if detail else 0.0, 0.0, not detail, detail) for name, detail in details.items()
    ]
