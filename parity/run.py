"""Run a pair: every side of every case against the original, one report. All that compares goes through here.

``run_pair`` asks a ``Runner`` for case after case. The sides of a case run when they are first asked for
(``CaseRun``), what they computed is held together under the port's names (``TracePair``), checks make rows of that, and
the report says how the rows ended and where it first goes wrong. The pytest plugin asks the same ``Runner`` for one
check at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from parity.allowed import Spread, spread_of
from parity.checks import run_check, run_checks
from parity.compare import RowKey, viewed
from parity.differences import Ledger
from parity.draws import Run as Again
from parity.draws import Stages, draws_of, runs_of, stages_of
from parity.environment import described
from parity.errors import InputError
from parity.flow import gradient_flow
from parity.names import align, as_map, known_to
from parity.observe import laid_out, port_draws
from parity.pair import EVERYTHING, Options, Pair, matches
from parity.place import first_place, hinted
from parity.report import UNCUT, print_report, write_html, write_json
from parity.side import AnySide, Run, Side
from parity.study import as_it_is, effect_rows, raised_rows, study, switched, unheld
from parity.tolerances import checked
from parity.trace import Trace
from parity.trace_pair import Check, TracePair, raised
from parity.verdict import Curve, Finding, Report, Row, Skip

HANDED = ("seed", "steps")
"""Entries of a configuration that the harness tells callables."""

SHOWN = 5
"""Names of failed tensors that a row tells beside its own."""

Progress = Callable[[str], object]
SILENT: Progress = str
"""Says nothing."""


class ParityError(AssertionError):
    """The two sides do not agree; the message is the whole report."""


@dataclass
class KitReport(Report):
    """The report of a pair, or of several: raises, prints and writes itself."""

    def raise_if_failed(self) -> None:
        """Raises ParityError (an AssertionError) with the printed report."""
        if not self.passed:
            raise ParityError(str(self))

    def write_html(self, path: str | Path) -> None:
        """The report as one HTML file."""
        write_html(self, path)

    def write_json(self, path: str | Path) -> None:
        """Every row as JSON."""
        write_json(self, path)

    def __str__(self) -> str:
        text = io.StringIO()
        print_report(self, Console(file=text, width=UNCUT))
        return text.getvalue() + (f"first: {self.first}\n" if self.first else "")


class CaseRun(ExitStack):
    """One case of a pair: every side runs when it is first asked for, and stays until this is closed."""

    def __init__(self, pair: Pair, case: Any, made: dict[int, tuple[Any, Any]] | None = None) -> None:
        super().__init__()
        self.pair, self.case, self.made = pair, case, {} if made is None else made
        self.stages: dict[str, Stages] = {}

    @contextmanager
    def open_evidence(self, side: AnySide) -> Iterator[TracePair]:
        """A further side against the same original, for as long as it is looked at."""
        self.original()
        with CaseRun(self.pair, self.case, self.made) as beside:
            beside.stages = self.stages
            yield beside._evidence(side)

    def original(self) -> Run:
        """The original's run. Whatever its code raises comes through, now and when it is asked for again."""
        return self._once(self.case, self._original)  # of the case: a pair may hold a side against itself

    def evidence(self, side: AnySide) -> TracePair:
        """A side against the original. Whatever the code of either raises comes through, as above."""
        return self._once(side, partial(self._evidence, side))

    def _once(self, of: Any, make: Callable[[], Any]) -> Any:
        """What is made once for this very object, which is kept beside it, so that no other one gets its identity."""
        if id(of) not in self.made:
            try:
                self.made[id(of)] = of, make()
            except Exception as error:
                self.made[id(of)] = of, error
        found = self.made[id(of)][1]
        if isinstance(found, Exception):
            raise found
        return found

    def _original(self) -> Run:
        side = self.pair.original
        assert side is not None
        return self.enter_context(side.trace(self.pair.for_original(self.case)))

    def _again(self) -> Again:
        """How the original is run again."""
        return runs_of(self.pair.original, self.pair.for_original(self.case), self.original().trace)

    def _evidence(self, side: AnySide) -> TracePair:
        run, names, pair = self.original(), as_map(self.pair.names), self.pair
        case, drawn = run.case or self.case, port_draws(pair.draws, run.trace.group("mb0.draw."))
        handed: set[str] = {*getattr(side, "handed", ())}
        if isinstance(side, Side):
            copied = names.parameters(run.trace.group("init.")) if pair.copy_weights else {}
            handed = {*HANDED, *(f"init.{name}" for name in copied), *(f"mb0.draw.{name}" for name in drawn)}
            weights = {**case.weights, **copied}
            case = replace(case, weights=weights, draws={draw: draw.port for draw in pair.draws}, replayed=drawn)
        ran = self.enter_context(side.trace(case))
        expected, found = align(run.trace, ran.trace, names)
        at_port = found.group("mb0.draw.")
        drawn = {name: laid_out(value, at_port[name]) if name in at_port else value for name, value in drawn.items()}
        expected.tensors.update({f"mb0.draw.{name}": value for name, value in drawn.items()})
        left_out = (*expected.left_out, *found.left_out)
        reference = pair.reference and partial(self._once, pair.reference, partial(pair.reference, case))
        mine, theirs = viewed(expected, found, pair.views)
        mine = replace(mine, run="original") if mine.run == theirs.run else mine

        def aligned(further: Trace) -> Trace:
            return viewed(align(further, ran.trace, names)[0], found, pair.views)[0]

        def named(spread: Spread) -> Spread:
            return names.spread(spread, run.trace, known_to(ran.trace))

        def few() -> list[Trace]:
            return cast(list[Trace], self._once(pair, lambda: draws_of(self._again())))

        def moved() -> Spread:
            if run.trace.spread:
                return named(run.trace.spread)
            return spread_of(mine, [*map(aligned, few())]) if few() else {}

        def more() -> Iterator[Spread]:
            if run.more is not None:
                yield named(run.more())
            elif not run.trace.spread and few():
                yield from stages_of(self._again(), run.trace, few(), aligned)

        return TracePair(
            case=case,
            expected=mine.without(left_out),
            found=theirs.without(left_out),
            own=checked(pair.tolerances),
            measure_spread=moved,
            measure_more=self.stages.setdefault(side.name, Stages(more())),
            alive=ran.alive,
            original=run.alive,
            left=ran.left,
            names=names,
            calls=run.trace.calls,
            views=pair.views,
            aligned=aligned,
            reference=reference and (lambda: viewed(reference(), found, pair.views)[0]),
            not_applicable=dict(pair.not_applicable),
            handed=handed,
            beside=any(side is one for one in pair.sides),
        )


def sides_of(pair: Pair) -> list[AnySide]:
    """All that are held against the original, the port last, with every known difference switched."""
    return [*pair.sides, switched(pair.port, pair.known_differences)]


def leaves_out(side: AnySide | None, case: Any) -> str | None:
    """Why a side does not run a case."""
    return getattr(side, "leaves_out", lambda case: None)(case)


def run_pair(pair: Pair, options: Options = EVERYTHING, progress: Progress = SILENT) -> KitReport:
    """The report of a pair.

    Raises:
        InputError: files, options or a checkout that cannot be used. What a side raises is a failed row instead.
    """
    chosen = pair.chosen(options.checks)
    cases = pair.find_cases(options.recordings) if {*chosen} - {*pair.jobs} else []
    cases = [case for case in cases if matches(options.keyword, case.name)]
    with closing(Runner(pair.at(options.original, options.recordings), chosen, progress)) as runner:
        if options.original is not None and cases:
            runner.verify(options.original)
        for case in cases:
            runner.judge(case)
        runner.judge_known_differences(strict=pair.strict and not options.keyword and options.checks is None)
        for name in pair.find_jobs(options):
            progress(name)
            runner.report.join(pair.jobs[name](options))
    if options.original is None and pair.live is not None and pair.original is not None:
        runner.report.skips.append(Skip("original", f"{pair.name} live", "no checkout was given", pair.remedy))
    return runner.report


def join_reports(results: Sequence[KitReport]) -> KitReport:
    """At least one report as one."""
    for result in results[1:]:
        results[0].join(result)
    return results[0]


class Runner:
    """Judges case after case into one report. The sides of a case are there until the next one is asked for."""

    def __init__(self, pair: Pair, chosen: Collection[str], progress: Progress = SILENT) -> None:
        self.pair, self.chosen, self.progress = pair, chosen, progress
        self.report = KitReport(environment=described(), deviations=list(pair.deviations))
        self.report.baseline = pair.baseline or (pair.original.name if pair.original else "") or "original"
        self.case_run: CaseRun | None = None

    def close(self) -> None:
        """Let go of the sides of the last case."""
        if self.case_run is not None:
            self.case_run.close()
        self.case_run = None

    def open_case(self, case: Any) -> CaseRun:
        """The sides of a case, and no other's any more."""
        if self.case_run is None or self.case_run.case is not case:
            self.close()
            self.case_run = CaseRun(self.pair, case)
        return self.case_run

    def checks(self, side: AnySide) -> list[Check]:
        """The checks of a side: all that are chosen, of those that it is held to."""
        held: Collection[str] = getattr(side, "checks", None) or self.chosen
        return [check for check in self.pair.every_check if check.name in self.chosen and check.name in held]

    def ask(self, case: Any, side: AnySide, check: Check) -> list[Row]:
        """The rows of one check of one side, by themselves, the first that failed with where it goes wrong.

        Whatever the code of a side raises comes through.
        """
        evidence = self.open_case(case).evidence(side)
        rows = run_check(evidence, check)
        return hinted(rows, evidence, first_place(rows, evidence), self.pair.hint)

    def ask_as_it_is(self, case: Any) -> list[Row]:
        """Whether the port runs without its known differences. Whatever the original's code raises comes through."""
        case_run, name = self.open_case(case), case.name or "case"
        case_run.original()
        return as_it_is(name, self.pair.port, self.pair.known_differences, case_run.open_evidence)

    def verify(self, root: Path) -> None:
        """Rows for a checkout: are its files what they should be?"""
        subject = RowKey.of_side(self.pair.name, "original", "environment")
        if self.pair.verify is not None:
            wrong = [(line.partition(":")[0], line) for line in self.pair.verify(root)] or [("all", "")]
            self.report.rows += [
                subject.row("files", file, float(bool(line)), 0.0, not line, line) for file, line in wrong
            ]

    def judge(self, case: Any) -> None:
        """Every side of one case; an exception of a side is a failed row, and the others still run."""
        case_run, original, name = self.open_case(case), self.pair.original, case.name or "case"
        assert original is not None
        self.progress(name)
        reason, _, remedy = (leaves_out(original, case) or "").partition(": ")
        if reason:
            self.report.skips.append(Skip("original", name, reason, remedy or self.pair.remedy))
            return
        run = self._guarded(RowKey.of_side(name, original.name or "original"), case_run.original)
        if run is None:
            return
        self.report.curves += curves(run.trace, self.report.baseline)
        port, known = self.pair.port, self.pair.known_differences
        subject = RowKey.of_side(name, port.name or "port", "known_differences")
        for side in self._guarded(subject, partial(sides_of, self.pair)) or ():
            subject = RowKey.of_side(name, side.name or "port")
            if left_out := leaves_out(side, case):
                self.report.rows.append(subject.inapplicable(left_out))
            elif evidence := self._guarded(subject, partial(case_run.evidence, side)):
                self._side(evidence, self.checks(side))
        if known and not leaves_out(port, case):
            self._known_differences(name, study(name, port, known, case_run.open_evidence, self.checks(port)))

    def _known_differences(self, case: str, ledger: Ledger) -> None:
        """What known differences explain in one case, and what the port raises as it is."""
        rows = raised_rows(RowKey.of_side(case, ledger.run or "port"), self.pair.known_differences, ledger)
        wrong = next((row for row in rows if not row.passed), None)
        self.report.first = self.report.first or (Finding("run", "run", wrong.run, 0, wrong.detail) if wrong else None)
        self.report.ledgers.append(ledger)
        self.report.rows += rows

    def judge_known_differences(self, strict: bool) -> None:
        """A known difference that explains nothing in any case is a failed row, or a note."""
        if self.report.ledgers:
            subject = RowKey.of_side(self.pair.name, self.pair.port.name or "port", "known_differences")
            rows = effect_rows(subject, self.pair.known_differences, self.report.ledgers)
            self.report.rows += rows if strict else []
            self.report.notes += [] if strict else [row.detail for row in rows if not row.passed]
            self.report.notes += unheld(self.pair.known_differences)

    def _guarded(self, subject: RowKey, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except InputError:
            raise
        except Exception as error:  # whatever the code of a side raises
            row = raised(subject, error)
            self.report.rows.append(row)
            self.report.first = self.report.first or Finding("run", "run", subject.run, 0, row.detail)
            return None

    def _side(self, evidence: TracePair, checks: Sequence[Check]) -> None:
        """All that the report says of one side on one case."""
        report = self.report
        rows = run_checks(evidence, checks)
        first = first_place(rows, evidence)
        self.report.first = self.report.first or first
        report.add(one_row_a_check(hinted(rows, evidence, first, self.pair.hint), ("round_trip", "resume")))
        report.speeds += evidence.speeds
        report.notes += [note for note in notes_of(evidence) if note not in report.notes]
        theirs, own = evidence.expected.environment, evidence.found.environment
        apart = any(own.get(name) != value for name, value in theirs.items() if name != "seed")
        report.environment.update({evidence.expected.run: theirs, evidence.found.run: own} if apart else own)
        report.curves += curves(evidence.found, evidence.found.run)
        known = [replace(flow, run=report.baseline) for flow in gradient_flow(evidence.expected) if flow.fault]
        report.gradient_flow += [flow for flow in known if flow not in report.gradient_flow]  # worth a word, no alarm
        report.gradient_flow += gradient_flow(evidence.found)


def curves(trace: Trace, run: str) -> list[Curve]:
    """Loss and gradient norm of a run, to be drawn under that name."""
    norms = (float("nan") if point.grad_norm is None else point.grad_norm for point in trace.curve)
    losses = (point.loss for point in trace.curve)
    return [Curve(trace.case, run, "loss", tuple(losses)), Curve(trace.case, run, "grad_norm", tuple(norms))]


def notes_of(evidence: TracePair) -> list[str]:
    """What was not compared, and every version or mode that the two environments do not share."""
    theirs, own = evidence.expected.environment, evidence.found.environment
    notes = [
        f"{name}: {value} on the original's side, {own[name]} on the port's"
        for name, value in theirs.items()
        if name in own and own[name] != value
    ]
    left_out = ", ".join(evidence.found.left_out)
    return [*notes, rate_of(evidence), *[f"left out of a trace, not compared: {left_out}"] * bool(left_out)]


def rate_of(evidence: TracePair) -> str:
    """How often a right port is called wrong, and by how many runs of the original that is known."""
    moved, turned = map(int, evidence.drawn[:2])
    if not moved:
        return "nobody moved the original: its bounds are typed, and how often a right port fails is not known"
    runs = f"{moved} times moved by one rounding" + f", {turned} times with signs turned" * bool(turned)
    return f"a right port fails in fewer than 1 of 10,000 cases (docs/tolerances.md); drawn {runs}"


def one_row_a_check(rows: Iterable[Row], checks: Iterable[str]) -> list[Row]:
    """The rows, but one for each of these checks: the worst, which says how many there were, and what else failed."""
    rows = list(rows)
    held = {check: [row for row in rows if row.check == check and row.compared] for check in checks}
    last = {id(each[-1]): _worst_of(each) for each in held.values() if each}
    return [last.get(id(row), row) for row in rows if id(row) in last or not row.compared or row.check not in held]


def _worst_of(rows: list[Row]) -> Row:
    worst = max(rows, key=lambda row: (not row.passed, row.ratio or 0.0))
    failed = [row.tensor or row.quantity for row in rows if not row.passed and row is not worst]
    more = f"; also {', '.join(failed[:SHOWN])}{' ...' * (len(failed) > SHOWN)}" * bool(failed)
    hint = next((row.hint for row in rows if row.hint), "")
    detail = f"{len(failed) + (not worst.passed)} of {len(rows)} differ, the worst: {worst.detail}{more}"
    return replace(worst, detail=detail, hint=hint, bits="")
