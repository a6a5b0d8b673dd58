"""A pair: an original and a port, the cases both run, and everything that has to be known to hold them together.

Also how one is found by its name, and what of it is to be run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _pytest.mark.expression import Expression

from parity.case import Case
from parity.checks import ON_REQUEST, with_own
from parity.compare import View
from parity.errors import InputError, place_of
from parity.names import NameMap
from parity.observe import Draw
from parity.outside import FolderSide
from parity.plants import Fault
from parity.side import AnySide, Side
from parity.study import KnownDifference
from parity.tolerances import Tolerances
from parity.trace import Trace
from parity.trace_pair import Check, TracePair
from parity.verdict import Deviation, Report, Row

SHIPPED = {"eagle3": "parity.prototypes.pair:EAGLE3", "hass": "parity.prototypes.pair:HASS"}
"""Pairs that come with the package, by the name a command line may use."""

Cases = Sequence[Any] | Callable[[], Sequence[Any]] | Callable[[Path | None], Sequence[Any]]
Job = Callable[["Options"], Report]


@dataclass(frozen=True)
class Pair:
    """Data alone; :func:`parity.run` runs it.

    Args:
        name: in reports and on the command line.
        original, port: the two sides; ``original`` may be None where it needs a checkout (``live``).
        cases: what both are given, or a function that makes it when it is asked for. A function of an argument is
            given the folder of ``--recordings`` (None: the pair's own), and its original reads it by the case.
        names: the original's names to the port's, as :class:`NameMap` or a mapping of prefixes.
        views: coordinates that the two share, where their own differ.
        draws: what is drawn in one side and replayed in the other.
        known_differences: what the original does another way; the port is judged with all of them switched, and a
            ledger says what each explains. One that explains nothing is a note; ``strict``: it fails, in a run of all
            cases and checks.
        deviations: known ones, for the report.
        tolerances: bounds of your own, by quantity, in the places of what is measured.
        checks: of its own, instead of those of the same name or beside them.
        asked: names of checks that run on request alone and that the pair asks for.
        not_applicable: by check, why it does not apply: a reason, or a function of the evidence to one or None.
        sides: further sides that are held against the original.
        live: from the root of a checkout to the original's side, or to the pair as it is to be run then.
        remedy: how to get such a checkout; ``package`` is a folder in its root that is imported from there.
        verify: from that root to one line for every file that is not as it should be.
        reference: from a case to a trace of what the original's lacks: its formulas, run again.
        hint: a failed row and its evidence to what it looks like; empty: nothing known.
        jobs: by name, what is measured once and for no case; each gives rows and speeds as a report. They run unless
            checks are named and they are not among them.
        record: a case, the checkout's root and an output folder to what ``parity record`` wrote there.
        extend: adds to a port's trace, for ``parity trace``, what a run does not need.
        baseline: what the report calls the original's run; default: the original's name.
        copy_weights: give a port of callables the original's initial weights, by the map.
        batch_keys: for ``--power``, what the entries of a batch are: ``ids``, ``labels`` (without a mask those of -100
            are out of the loss), ``positions``, ``attention``, ``mask`` (of the loss), each to its key in a batch that
            is a mapping.
        faults: further ones that ``--power`` plants in the port.
        unseen: those of ``--power`` that no check sees, each with the reason, or with a function of the case to one or
            None; any other that goes unseen is then a failure. None: the table alone says so.
        short: the pair as ``--power`` runs it; default: its first case, of five steps.
    """

    name: str
    original: AnySide | None
    port: AnySide
    cases: Cases = (Case(),)
    names: NameMap | Mapping[str, str | None] | None = None
    draws: Sequence[Draw] = ()
    views: Sequence[View] = ()
    known_differences: Sequence[KnownDifference] = ()
    strict: bool = False
    deviations: Sequence[Deviation] = ()
    tolerances: Tolerances = field(default_factory=dict)
    checks: Sequence[Check] = ()
    asked: Sequence[str] = ()
    not_applicable: Mapping[str, str | Callable[[TracePair], str | None]] = field(default_factory=dict)
    sides: Sequence[AnySide] = ()
    live: Callable[[Path], AnySide | Pair] | None = None
    remedy: str = ""
    package: str = ""
    verify: Callable[[Path], list[str]] | None = None
    reference: Callable[[Any], Trace] | None = None
    hint: Callable[[Row, TracePair], str] | None = None
    jobs: Mapping[str, Job] = field(default_factory=dict)
    record: Callable[[Any, Path, Path], Path] | None = None
    extend: Callable[[Any, Trace], None] | None = None
    baseline: str = ""
    copy_weights: bool = True
    batch_keys: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    unseen: Mapping[str, str | Callable[[Any], str | None]] | None = None
    short: Callable[[Pair], Pair] | None = None

    def __post_init__(self) -> None:
        """InputError: two of what is held against the original have one name, so that no row could say whose it is."""
        names = [side.name for side in (*self.sides, self.port)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            found = f"several called {twice[0] or 'nothing'}"
            raise InputError(self.name, "sides", found, "names, Side(name=...), of sides and port that differ")

    @property
    def every_check(self) -> tuple[Check, ...]:
        return with_own(self.checks)

    def chosen(self, checks: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the checks and jobs to run: those asked for, else all that are not run on request alone.

        Raises:
            InputError: an unknown one.
        """
        known = [*(check.name for check in self.every_check), *self.jobs]
        for name in checks or ():
            if name not in known:
                raise InputError("comparison", "checks", name, f"of {', '.join(known)}")
        wanted = {*known} - ({*ON_REQUEST} - {*self.asked}) if checks is None else {*checks}
        return tuple(name for name in known if name in wanted)

    @property
    def reads_recordings(self) -> bool:
        """Are its cases found by the folder of ``--recordings``?"""
        return callable(self.cases) and bool(inspect.signature(self.cases).parameters)

    def find_cases(self, recordings: Path | None) -> list[Any]:
        """The cases, by the folder of ``--recordings`` where they are found by one."""
        cases: Any = self.cases
        return list(cases(*[recordings] * self.reads_recordings) if callable(cases) else cases)

    def find_jobs(self, options: Options) -> list[str]:
        """The names of the jobs that are to run."""
        return [name for name in self.chosen(options.checks) if name in self.jobs and matches(options.keyword, name)]

    def for_original(self, case: Any) -> Any:
        """The case as the original's callables are given it: with what it draws by a name."""
        draws = {draw: draw.original for draw in self.draws}
        return replace(case, draws=draws) if draws and isinstance(self.original, Side) else case

    def at(self, original: Path | None, recordings: Path | None) -> Pair:
        """The pair with the original from a checkout, or from traces in a folder where its cases are its own.

        Raises:
            InputError: a checkout for a pair that cannot run one, or an original that needs one.
        """
        if original is not None:
            if self.live is None:
                raise InputError(
                    "command line", "--original", original, f"nothing: {self.name} runs without a checkout"
                )
            if self.package and not (original / self.package).is_dir():
                raise InputError(original, "--original", f"no folder `{self.package}`", f"a checkout: {self.remedy}")
            if self.package:
                sys.path.insert(0, str(original.resolve()))
            found = self.live(original)
            return found if isinstance(found, Pair) else replace(self, original=found)
        if recordings is not None and not self.reads_recordings:
            return replace(self, original=FolderSide(recordings, "recorded"))
        if self.original is None:
            raise InputError("command line", "--original", "nothing", f"a checkout. {self.remedy}".strip())
        return self


@dataclass(frozen=True)
class Options:
    """What to run of a pair.

    ``original`` is the root of a checkout, ``recordings`` a folder of recorded cases or traces, ``keyword`` chooses
    cases and jobs by words of their names, ``checks`` are names, of jobs too; None: those of the pair.
    """

    original: Path | None = None
    recordings: Path | None = None
    keyword: str = ""
    checks: tuple[str, ...] | None = None


EVERYTHING = Options()


def find_pair(name: str) -> Pair:
    """``eagle3``, ``FILE.py:PAIR`` or ``package.module:PAIR``; imports go from the file's folder, or its package's.

    Raises:
        InputError: no such file, module or pair, or one that raises when it is imported.
    """
    place, _, attribute = SHIPPED.get(name, name).rpartition(":")
    if not place:
        raise InputError("command line", "PAIR", name, f"{', '.join(SHIPPED)} or FILE.py:NAME")
    try:
        found = getattr(module_of(place), attribute, None)
    except InputError:
        raise
    except Exception as error:  # whatever a user's file does when it is imported
        said = f"{type(error).__name__}: {error} at {place_of(error)}"
        raise InputError(place, attribute, said, "a file or a module that can be imported") from error
    if not isinstance(found, Pair):
        kind = "nothing of that name" if found is None else type(found).__name__
        raise InputError(place, attribute, kind, "a parity.Pair")
    return found


def module_of(place: str, field: str = "PAIR") -> Any:
    """A file or an importable module, imported; ``field`` says who names it. Raises InputError where there is none."""
    file = Path(place).resolve()
    if file.suffix != ".py":
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise InputError("command line", field, place, "a file or a module that can be imported")
        return importlib.import_module(place)
    if not file.is_file():
        raise InputError(place, field, "no such file", "FILE.py:NAME")
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    name = ".".join(file.relative_to(root).with_suffix("").parts)
    if getattr(sys.modules.get(name), "__file__", None) != str(file):
        sys.modules.pop(name, None)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    return importlib.import_module(name)


def matches(expression: str, name: str) -> bool:
    """``-k EXPR``, as pytest has it: every word stands for "is part of the name", joined by and, or, not, parentheses.

    An empty expression fits everything.

    Raises:
        InputError: an expression that cannot be read.
    """
    words = " ".join(expression.split())
    if not words:
        return True
    with contextlib.suppress(Exception):  # of a class that differs between pytest's versions, or too deep
        if re.fullmatch(r"[\w. ()-]+", words):
            return Expression.compile(words).evaluate(lambda word, /, **_: word in name)
    raise InputError("command line", "-k", repr(expression)[:80], "words joined by and, or, not, parentheses")
