"""Run a pair: every side of every case against the original, one report. All that compares goes through here."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from parity.calls import WHOLE, calls_of
from parity.checks import NAMES, gradient_flow, one_sided_notes, run_check
from parity.compare import Subject
from parity.environment import described, deterministic
from parity.errors import InputError
from parity.evidence import Check, Evidence, place_of, raised
from parity.files import read_object
from parity.locate import LOSS, Finding, first_backward, first_forward, within
from parity.names import NameMap, align, as_map
from parity.observe import drawing
from parity.operators import Live, with_operator
from parity.pair import Pair
from parity.persist import META, read_trace
from parity.report import print_report, write_html, write_json
from parity.select import matches
from parity.side import STEPS, Alive, AnySide, Batch, Case, Run, Side, TraceSide, start
from parity.study import effect_rows, study, switched
from parity.tolerances import Tolerances, table_for
from parity.trace import Trace
from parity.verdict import Curve, Report, Row, Skip, Status, explained

SHIPPED = {"eagle3": "parity.prototypes.eagle3.pair:PAIR", "hass": "parity.prototypes.hass.pair:PAIR"}
"""Pairs that come with the package, by the name a command line may use."""

TRACED = tuple(name for name in NAMES if name not in ("round_trip", "resume"))
"""Checks that two traces are enough for."""

DIRECTIONS = {
    "configuration": "setup",
    "weights": "setup",
    "batches": "setup",
    "optimizer_step": "update",
    "curve": "training",
}

Progress = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


class ParityError(AssertionError):
    """The two sides do not agree; the message is the whole report."""


@dataclass(frozen=True)
class KitReport:
    """Rows in the order in which a fault travels, and the first place where it goes wrong."""

    report: Report
    first: Finding | None = None

    @property
    def rows(self) -> list[Row]:
        return self.report.rows

    @property
    def passed(self) -> bool:
        return self.report.passed

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed by their own fault, in order."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.status is Status.FAILED))

    def raise_if_failed(self) -> None:
        """Raises ParityError (an AssertionError) with the printed report."""
        if not self.passed:
            raise ParityError(str(self))

    def write_html(self, path: str | Path) -> None:
        """The report as one HTML file."""
        write_html(self.report, path)

    def write_json(self, path: str | Path) -> None:
        """Every row as JSON."""
        write_json(self.report, path)

    def __str__(self) -> str:
        text = io.StringIO()
        print_report(self.report, Console(file=text, width=140))
        return text.getvalue() + (f"first: {self.first}\n" if self.first else "")


@dataclass(frozen=True)
class Options:
    """What to run of a pair.

    ``original`` is the root of a checkout, ``recordings`` a folder of recorded cases or traces, ``keyword`` chooses
    cases and jobs by words of their names, ``checks`` are names; None: those of the pair.
    ``baseline`` is a file of stored speeds to hold the port's against, ``save_baseline`` one to store them in.
    """

    original: Path | None = None
    recordings: Path | None = None
    keyword: str = ""
    checks: tuple[str, ...] | None = None
    baseline: Path | None = None
    save_baseline: Path | None = None


def find_pair(name: str) -> Pair:
    """``eagle3``, ``FILE.py:PAIR`` or ``package.module:PAIR``; imports go from the file's folder, or its package's.

    Raises:
        InputError: no such file, module or pair.
    """
    place, _, attribute = SHIPPED.get(name, name).rpartition(":")
    if not place:
        raise InputError("command line", "PAIR", name, f"{', '.join(SHIPPED)} or FILE.py:NAME")
    found = getattr(_module(place), attribute, None)
    if not isinstance(found, Pair):
        kind = "nothing of that name" if found is None else type(found).__name__
        raise InputError(place, attribute, kind, "a parity.Pair")
    return found


def _module(place: str) -> Any:
    file = Path(place).resolve()
    if file.suffix != ".py":
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise InputError("command line", "PAIR", place, "a file or a module that can be imported")
        return import_module(place)
    if not file.is_file():
        raise InputError(place, "PAIR", "no such file", "FILE.py:NAME")
    root = file.parent
    while (root / "__init__.py").exists():
        root = root.parent
    name = ".".join(file.relative_to(root).with_suffix("").parts)
    if getattr(sys.modules.get(name), "__file__", None) != str(file):
        sys.modules.pop(name, None)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    return import_module(name)


@dataclass
class CaseRun:
    """One case of a pair: every side runs when it is first asked for, and stays for as long as the stack is open."""

    pair: Pair
    case: Any
    stack: ExitStack
    held: dict[str, Any] = field(default_factory=dict)

    def evidence(self, side: AnySide) -> Evidence:
        """A side against the original. Whatever the code of either raises comes through."""
        if side.name not in self.held:
            self.held[side.name] = self._evidence(side)
        found: Evidence = self.held[side.name]
        return found

    @contextmanager
    def apart(self, side: AnySide) -> Iterator[Evidence]:
        """A further side against the same original, for as long as it is looked at."""
        with ExitStack() as stack:
            yield replace(self, stack=stack, held={"": self.original()})._evidence(side)

    def original(self) -> Run:
        """The original's run."""
        if "" not in self.held:
            assert self.pair.original is not None
            case = self._drawn(self.case, self.pair.original, {draw: draw.original for draw in self.pair.draws})
            self.held[""] = self.stack.enter_context(self.pair.original.trace(case))
        found: Run = self.held[""]
        return found

    def _drawn(self, case: Any, side: AnySide, draws: Mapping[Any, str], replayed: Any = None) -> Any:
        """The case with what a side of callables draws by name."""
        return replace(case, draws=draws, replayed=replayed or {}) if isinstance(side, Side) and draws else case

    def _evidence(self, side: AnySide) -> Evidence:
        run, names = self.original(), as_map(self.pair.names)
        case = run.case or self.case
        if isinstance(side, Side) and self.pair.copy_weights and not case.weights:
            case = replace(case, weights=names.parameters(run.trace.group("init.")))
        drawn = {draw: draw.port for draw in self.pair.draws}
        case = self._drawn(case, side, drawn, run.trace.group("mb0.draw."))
        ran = self.stack.enter_context(side.trace(case))
        expected, found = align(run.trace, ran.trace, names)
        left_out = (*expected.left_out, *ran.trace.left_out)
        return Evidence(
            case=case,
            expected=_named_apart(expected, found).without(left_out),
            found=found.without(left_out),
            table=table_for(ran.trace.dtype, self.pair.tolerances, self.pair.tables),
            live=ran.live,
            original=run.live,
            names=names,
            views=tuple(self.pair.views),
            oracle=self._oracle(case),
            not_applicable=dict(self.pair.not_applicable),
        )

    def _oracle(self, case: Any) -> Callable[[], Trace] | None:
        if self.pair.oracle is None:
            return None
        found: Callable[[], Trace] = self.held.setdefault("oracle()", self.pair.oracle(case))
        return found


def _named_apart(expected: Trace, found: Trace) -> Trace:
    return replace(expected, run="original") if expected.run == found.run else expected


def sides_of(pair: Pair) -> list[AnySide]:
    """All that are held against the original, the port last, with every cause switched."""
    return [*pair.sides, switched(pair.port, pair.causes)]


def leaves_out(side: AnySide, case: Any) -> str | None:
    """Why a side does not run a case."""
    reason: str | None = getattr(side, "leaves_out", lambda case: None)(case)
    return reason


def checks_of(pair: Pair, side: AnySide, chosen: Collection[str]) -> list[Check]:
    """The checks of a side: all that are chosen, of those that it is held to."""
    held: Collection[str] | None = getattr(side, "checks", None)
    return [check for check in pair.every_check if check.name in chosen and (held is None or check.name in held)]


def run(pair: Pair, options: Options = Options(), progress: Progress = silent) -> Report:
    """The report of a pair.

    Raises:
        InputError: files, options or a checkout that cannot be used. What a side raises is a failed row instead.
    """
    return run_pair(pair, options, progress).report


def run_pair(pair: Pair, options: Options = Options(), progress: Progress = silent) -> KitReport:
    """As :func:`run`, with the first place where it goes wrong."""
    chosen = pair.chosen(options.checks)
    cases = [case for case in pair.find_cases(options.recordings) if matches(options.keyword, case.name)]
    runner = Runner(pair.at(options.original, options.recordings), chosen, progress)
    if options.original is not None and cases:
        runner.verify(options.original)
    for case in cases:
        progress(case.name)
        runner.judge(case)
    runner.judge_causes(strict=pair.strict and not options.keyword and options.checks is None)
    for name, job in pair.jobs.items():
        if matches(options.keyword, name):
            progress(name)
            add(runner.report, job(options))
    if options.original is None and pair.live is not None and pair.original is not None:
        runner.report.skips.append(Skip("original", f"{pair.name} live", "no checkout was given", pair.remedy))
    return KitReport(runner.report, runner.first)


class Runner:
    """Judges case after case into one report."""

    def __init__(self, pair: Pair, chosen: Collection[str], progress: Progress) -> None:
        self.pair, self.chosen, self.progress = pair, chosen, progress
        self.report = Report(environment=described(), deviations=list(pair.deviations))
        self.report.baseline = pair.baseline or (pair.original.name if pair.original else "") or "original"
        self.first: Finding | None = None
        self.done: dict[tuple[str, str], str] = {}

    def verify(self, root: Path) -> None:
        """Rows for a checkout: are its files what they should be?"""
        if self.pair.verify is None:
            return
        subject, wrong = Subject("environment", self.pair.name, "original"), self.pair.verify(root)
        self.report.rows += [subject.row("files", line.partition(":")[0], 1.0, 0.0, False, line) for line in wrong]
        self.report.rows += [] if wrong else [subject.row("files", "all", 0.0, 0.0, True)]

    def judge(self, case: Any) -> None:
        """Every side of one case; an exception of a side is a failed row, and the others still run."""
        with ExitStack() as stack:
            held = CaseRun(self.pair, case, stack)
            original = self.pair.original
            name = case.name or "case"
            assert original is not None
            reason = leaves_out(original, case)
            if reason:
                reason, _, remedy = reason.partition(": ")
                self.report.skips.append(Skip("original", name, reason, remedy or self.pair.remedy))
                return
            ran = self._guarded(Subject("run", name, original.name or "original"), lambda: held.original())
            if ran is None:
                return
            self._curves(ran.trace, name, original=True)
            sides = self._guarded(Subject("causes", name, self.pair.port.name or "port"), lambda: sides_of(self.pair))
            for side in sides or ():
                self._side(held, side, name)
            port, causes = self.pair.port, self.pair.causes
            if causes and not leaves_out(port, case):
                checks = checks_of(self.pair, port, self.chosen)
                self.report.ledgers.append(study(name, port, causes, held.apart, checks))

    def judge_causes(self, strict: bool) -> None:
        """A cause that explains nothing in any case is a failed row, or a note."""
        if self.report.ledgers:
            subject = Subject("causes", self.pair.name, self.pair.port.name or "port")
            rows = effect_rows(subject, self.pair.causes, self.report.ledgers)
            self.report.rows += rows if strict else []
            self.report.notes += [] if strict else [row.detail for row in rows if not row.passed]

    def _side(self, held: CaseRun, side: AnySide, name: str) -> None:
        subject, reason = Subject("run", name, side.name or "port"), leaves_out(side, held.case)
        if reason:
            self.report.rows.append(subject.inapplicable(reason))
            return
        evidence = self._guarded(subject, lambda: held.evidence(side))
        if evidence is None:
            return
        rows = self._rows(evidence, checks_of(self.pair, side, self.chosen))
        first = first_place(rows, evidence)
        self.first = self.first or first
        self.report.rows += hinted(rows, evidence, first, self.pair)
        self.report.speeds += evidence.speeds
        self.report.notes += [note for note in notes_of(evidence) if note not in self.report.notes]
        self.report.environment.update(environments(evidence))
        self._curves(evidence.found, name, original=False)
        self.report.gradient_flow += gradient_flow(evidence)

    def _rows(self, evidence: Evidence, checks: Iterable[Check]) -> list[Row]:
        rows, checks = [], list(checks)
        for check in checks:
            key = evidence.found.run, check.name
            if check.once and key in self.done:
                reason = f"depends on no case: judged in {self.done[key]}"
                rows.append(evidence.subject(check.name, check.against).inapplicable(reason))
                continue
            found = run_check(evidence, check)
            if any(row.status is not Status.NOT_APPLICABLE for row in found):
                self.done.setdefault(key, evidence.found.case)
            rows += found
        return explained(rows, {check.name: check.follows for check in checks})

    def _guarded(self, subject: Subject, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except InputError:
            raise
        except Exception as error:  # whatever the code of a side raises
            row = raised(subject, error)
            self.report.rows.append(row)
            self.first = self.first or Finding("run", "run", subject.run, 0, row.detail)
            return None

    def _curves(self, trace: Trace, case: str, original: bool) -> None:
        run = self.report.baseline if original else trace.run
        norms = tuple(float("nan") if point.grad_norm is None else point.grad_norm for point in trace.curve)
        self.report.curves.append(Curve(trace.case, run, "loss", tuple(point.loss for point in trace.curve)))
        self.report.curves.append(Curve(trace.case, run, "grad_norm", norms))


def add(whole: Report, part: Report) -> None:
    """Put what one report found at the end of another."""
    for name in ("rows", "skips", "curves", "gradient_flow", "speeds", "ledgers"):
        getattr(whole, name).extend(getattr(part, name))
    for name in ("notes", "deviations"):
        getattr(whole, name).extend(one for one in getattr(part, name) if one not in getattr(whole, name))
    whole.environment.update(part.environment)


def run_all(pairs: Sequence[Pair], options: Options, progress: Progress = silent) -> KitReport:
    """Several pairs in one report.

    Raises:
        InputError: as in :func:`run`.
    """
    results = [run_pair(pair, options, progress) for pair in pairs]
    report = results[0].report
    for result in results[1:]:
        add(report, result.report)
    return KitReport(report, next((result.first for result in results if result.first), None))


def environments(evidence: Evidence) -> dict[str, object]:
    """The found side's, or both under the sides' names where they differ and the original says what its was."""
    expected, found = evidence.expected.environment, evidence.found.environment
    if not expected or any(expected.get(name) != found.get(name) for name in expected if name != "seed"):
        return {evidence.expected.run: dict(expected), evidence.found.run: dict(found)} if expected else dict(found)
    return dict(found)


def notes_of(evidence: Evidence) -> list[str]:
    """What was not compared, and every version or mode that the two environments do not share."""
    sides = evidence.expected.environment, evidence.found.environment
    names = [name for name in dict.fromkeys([*sides[0], *sides[1]]) if name in sides[0] and name in sides[1]]
    notes = [
        f"{name}: {sides[0][name]} on the original's side, {sides[1][name]} on the port's"
        for name in names
        if sides[0][name] != sides[1][name]
    ]
    left_out = evidence.found.left_out
    notes += [f"left out of a trace, not compared: {', '.join(left_out)}"] if left_out else []
    return notes + one_sided_notes(evidence)


def hinted(rows: list[Row], evidence: Evidence, first: Finding | None, pair: Pair) -> list[Row]:
    """The first failed row of every check says what it looks like, the first of all where it goes wrong."""
    told, seen = [], set[str]()
    for row in rows:
        if row.status is Status.FAILED and row.check not in seen:
            known = pair.hint(row, evidence) if pair.hint else ""
            place = str(first) if first and not seen and not known else ""
            row = replace(row, hint=known or place)
            seen.add(row.check)
        told.append(row)
    return told


def first_place(rows: Sequence[Row], evidence: Evidence) -> Finding | None:
    """Where the first failed row's check goes wrong; None when everything passed."""
    row = next((row for row in rows if row.status is Status.FAILED), None)
    if row is None:
        return None
    sides = calls_of(evidence.expected), calls_of(evidence.found)
    finding = None
    if row.check == "forward" and all(sides) and row.quantity != "calls":
        finding = first_forward(*sides, within(evidence.tolerance("out").bound))
    elif row.check == "gradients" and all(sides):
        grads = evidence.expected.group("mb0.grad."), evidence.found.group("mb0.grad.")
        finding = first_backward(*sides, grads, within(evidence.tolerance("grad").bound))
    return _with_operator(finding, evidence) if finding else _of_row(row)


def _with_operator(finding: Finding, evidence: Evidence) -> Finding:
    """The first operator below the module too, where both sides can be run again."""
    sides = evidence.original, evidence.live
    if not all(isinstance(side, Alive) for side in sides):
        return finding
    agree = within(evidence.tolerance("grad" if finding.direction == "backward" else "out").bound)
    try:
        return with_operator(finding, _to_follow(sides[0]), _to_follow(sides[1]), agree, evidence.names)
    except Exception as error:  # whatever a module does that cannot be followed
        return replace(finding, operator=f"not found, {type(error).__name__} at {place_of(error)}")


def _to_follow(alive: Alive) -> Live:
    """A fresh module and its loss, with the same seed and draws as the run's."""
    with deterministic(alive.case.seed):
        module = start(alive.side, alive.case.weights)

    def run() -> Any:
        with deterministic(alive.case.seed), drawing(alive.case.draws, alive.case.replayed):
            return alive.side.loss(module, alive.case.batches[0])

    return Live(module, run)


def _of_row(row: Row) -> Finding:
    """The place that a row names by itself."""
    if row.check == "loss":
        return Finding("loss", "forward", LOSS, 0, row.detail)
    parameter = row.tensor.partition(".")[2] if row.check in ("weights", "optimizer_step") else ""
    parameter = row.tensor if row.quantity == "requires_grad" else parameter
    module = parameter.rpartition(".")[0] if parameter else WHOLE
    module = row.tensor if row.quantity == "calls" else module
    detail = ": ".join(filter(None, (row.tensor, row.detail)))
    return Finding(row.check, DIRECTIONS.get(row.check, row.check), module or WHOLE, 0, detail)


def compare_sides(
    original: AnySide,
    port: AnySide,
    batches: Sequence[Batch] = (),
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] | None = None,
    copy_weights: bool = True,
) -> KitReport:
    """Hold a port against its original and say where it first goes wrong: a :class:`Pair` of the two, run.

    Args:
        original, port: sides; a command's own trace stands for what it computed.
        batches: given to both sides; the first one is traced, all of them make the curve.
        names: the original's names to the port's; :func:`suggest_names` proposes one.
        seed: of both builds, and of what the first step draws.
        steps: optimizer steps of the curve and of the resumed run.
        tolerances: rows in the place of the default table's.
        checks: of ``CHECKS`` and ``throughput``.
        copy_weights: give the port the original's initial weights by the map. Otherwise both start from their own,
            which must be equal.

    Raises:
        InputError: no batch, an unknown check or tolerance, or a dtype without tolerances.
    """
    original, port = (_with_name(side, name) for side, name in ((original, "original"), (port, "port")))
    pair = Pair(
        name=port.name,
        original=original,
        port=port,
        cases=(Case("", batches, seed, steps),),
        names=names,
        tolerances=tolerances or {},
        copy_weights=copy_weights,
    )
    return run_pair(pair, Options(checks=None if checks is None else tuple(checks)))


def _with_name(side: Any, name: str) -> Any:
    return side if side.name else replace(side, name=name)


def compare_traces(
    original: Trace,
    port: Trace,
    *,
    names: NameMap | Mapping[str, str | None] | None = None,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = TRACED,
) -> KitReport:
    """Hold a trace against another one, tensor by tensor.

    Args:
        original, port: of :func:`trace_side`, :func:`read_trace`, or of a shipped port.
        names: the original's names to the port's.
        tolerances: rows that take the place of the default table's.
        checks: which of those that need no side to run again.

    Raises:
        InputError: traces of another dtype than there is a table for.
    """
    case = Case(port.case)
    if original.run == port.run:
        original, port = replace(original, run="original"), replace(port, run="port")
    pair = Pair(port.case, TraceSide(original), TraceSide(port), (case,), names, tolerances=tolerances or {})
    return run_pair(pair, Options(checks=tuple(checks)))


def compare_folders(
    original: Path,
    port: Path,
    names: NameMap | None = None,
    tolerances: Tolerances | None = None,
    checks: Iterable[str] = TRACED,
) -> KitReport:
    """Every trace of one folder with that of the same name in the other.

    Raises:
        InputError: a folder without a trace, or a damaged one.
    """
    sides = traces_in(original), traces_in(port)
    if ("" in sides[0]) != ("" in sides[1]):
        raise InputError(port if "" in sides[0] else original, META, "missing", "one trace, as in the other folder")
    whole, first = Report(baseline=original.name), None
    for name in sorted({*sides[0], *sides[1]}):
        if name not in sides[0] or name not in sides[1]:
            missing = f"missing in {port if name in sides[0] else original}"
            whole.rows.append(Subject("trace", name, "trace").row("trace", "", None, None, False, missing))
            continue
        pair = read_trace(sides[0][name]), read_trace(sides[1][name])
        try:
            table_for(pair[1].dtype, tolerances)
        except InputError as error:
            if error.field != "dtype" or tolerances:
                raise
            reason = f"there are no default tolerances for {pair[1].dtype}"
            whole.skips.append(Skip("trace", name or pair[1].case, reason, "--tolerances FILE, see docs/kit.md"))
            continue
        result = compare_traces(*pair, names=names, tolerances=tolerances, checks=checks)
        first = first or result.first
        add(whole, result.report)
    return KitReport(whole, first)


def traces_in(folder: Path) -> dict[str, Path]:
    """A folder that is a trace, by the empty name; else its subfolders that are traces, by theirs.

    Raises:
        InputError: neither.
    """
    if not folder.is_dir():
        raise InputError(folder, "trace", "no such folder", "a folder that parity trace or write_trace wrote")
    if (folder / META).exists():
        return {"": folder}
    found = {file.parent.name: file.parent for file in sorted(folder.glob(f"*/{META}"))}
    if not found:
        raise InputError(folder, META, "missing", "a trace, or folders with one each")
    return found


def read_names(file: Path) -> NameMap:
    """A name map from a JSON object; null stands for no counterpart.

    Raises:
        InputError: not an object of names.
    """
    document = read_object(file)
    for name, target in document.items():
        if target is not None and not isinstance(target, str):
            raise InputError(file, name, repr(target)[:80], "a name or null")
    return NameMap(document)
