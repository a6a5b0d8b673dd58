"""``parity run``, ``record``, ``trace``, ``compare`` and ``doctor``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer
from rich.console import Console
from rich.table import Table

from parity.compare import RowKey
from parity.comparing import TRACED, compare_folders, read_names
from parity.draws import draws_of, runs_of, stages_of
from parity.environment import describe, hush, optional_parts
from parity.errors import InputError
from parity.files import check_output
from parity.outside import SideError
from parity.pair import SHIPPED, Options, Pair, find_pair, matches
from parity.power import run_with_power
from parity.report import print_report, stdout_console
from parity.run import KitReport, join_reports, leaves_out, run_pair
from parity.side import AnySide
from parity.tolerances import read_tolerances
from parity.trace import GROUPS, write_trace
from parity.trace_pair import raised

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

File = Optional[Path]  # noqa: UP045
Word = Optional[str]  # noqa: UP045
PairName = Annotated[Word, typer.Argument(metavar="PAIR", help="FILE.py:NAME, eagle3, hass or all: both")]
Recordings = Annotated[File, typer.Option(help="folder of recorded cases, or of traces; default: the pair's own")]
Original = Annotated[
    File, typer.Option("--original", "--prototype", help="root of the original's checkout: run it live")
]
Keyword = Annotated[str, typer.Option("-k", help="only cases whose name fits: words, and, or, not")]
Html = Annotated[File, typer.Option("--report", help="write the HTML report here")]
Json = Annotated[File, typer.Option("--json", help="write the rows as JSON here")]


@app.command()
def run(
    pair: PairName = None,
    recordings: Recordings = None,
    original: Original = None,
    report: Html = None,
    json: Json = None,
    keyword: Keyword = "",
    checks: Annotated[str, typer.Option(help="comma-separated, of jobs too; default: all of the pair")] = "",
    power: Annotated[
        bool, typer.Option("--power", help="plant faults in the port: which would have been seen?")
    ] = False,
) -> None:
    """Hold a port against its original and print a verdict. Exit code 0: all passed, 1: not, 2: bad input."""
    _check_outputs({"--report": report, "--json": json})
    chosen = _words("--checks", checks) or None
    options = Options(original, recordings, keyword, chosen)
    console, pairs = stdout_console(), _pairs(pair)
    judge = run_with_power if power else run_pair
    with console.status("running") as status:
        result = join_reports([judge(one, options, lambda line: status.update(line)) for one in pairs])
    _show(result, report, json, console)


@app.command()
def record(
    pair: PairName = None,
    original: Original = None,
    output: Annotated[Path, typer.Option(help="folder the new recordings go to")] = Path("recordings"),
    recordings: Recordings = None,
    keyword: Keyword = "",
) -> None:
    """Run the original on a pair's cases and write what it computes, to be held against a port later, elsewhere.

    Cases that cannot run here are left out with the reason. Exit code 2: bad input, or all of them are.
    """
    check_output(output, "--output", folder=True)
    left_out, chosen = 0, _chosen(_pairs(pair), recordings, keyword)
    for one, case in chosen:
        if one.record is None:
            there = one.at(original, None)
            assert there.original is not None  # Pair.at raises where none is
            _keep(there.original, one, there.for_original(case), output)
        elif original is None:
            raise InputError("command line", "--original", "nothing", f"a checkout: {one.remedy}")
        elif reason := leaves_out(one.live and one.at(original, None).original, case):
            typer.echo(f"{case.name} is left out: {reason}", err=True)
            left_out += 1
        else:
            typer.echo(one.record(case, original, output))
    if left_out == len(chosen):
        raise typer.Exit(2)


@app.command()
def trace(
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="FILE.py:NAME, eagle3, hass or all")],
    output: Annotated[Path, typer.Argument(help="folder the traces go to, one folder a case")],
    recordings: Recordings = None,
    keyword: Keyword = "",
    leave_out: Annotated[str, typer.Option(help=f"to save space: comma-separated, of {', '.join(GROUPS)}")] = "",
) -> None:
    """Run the port of a pair and write what it computes, to be compared elsewhere."""
    check_output(output, "the command line", folder=True)
    groups = _words("--leave-out", leave_out, GROUPS)
    for one, case in _chosen(_pairs(pair), recordings, keyword):
        _keep(one.port, one, case, output, groups)


@app.command()
def compare(
    original: Annotated[Path, typer.Argument(help="a trace, or a folder of traces: what is expected")],
    port: Annotated[Path, typer.Argument(help="the other side")],
    names: Annotated[File, typer.Option(help="JSON object: the original's names to the port's")] = None,
    tolerances: Annotated[File, typer.Option(help="JSON object: kind, bound and reason by quantity")] = None,
    checks: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(TRACED)}")] = ",".join(TRACED),
    report: Html = None,
    json: Json = None,
) -> None:
    """Compare traces written on two machines or under two versions. Exit code 0: all passed, 1: not, 2: bad input."""
    _check_outputs({"--report": report, "--json": json})
    chosen = _words("--checks", checks, TRACED)
    own = read_tolerances(tolerances) if tolerances else None
    result = compare_folders(original, port, read_names(names) if names else None, own, chosen)
    _show(result, report, json, stdout_console())


@app.command()
def doctor(original: Original = None) -> None:
    """Explain the environment: versions, numeric modes, what can run here and what is missing."""
    console, table, state = stdout_console(), Table("what", "found", box=None), ["no checkout given (--original DIR)"]
    for name, value in describe().items():
        table.add_row(name, str(value))
    if original is not None:
        wrong = [line for pair in _pairs(None) if pair.verify is not None for line in pair.verify(original)]
        state = wrong or [f"{original} holds the commit's files"]
    console.print(table)
    for line in [*optional_parts(), *(f"original: {line}" for line in state)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _pairs(name: str | None) -> list[Pair]:
    """The pair of that name, else those shipped."""
    return [find_pair(each) for each in (SHIPPED if name in (None, "all") else [name])]


def _chosen(pairs: list[Pair], recordings: Path | None, keyword: str) -> list[tuple[Pair, Any]]:
    """Every pair with each of its cases that the keyword fits; nothing to do is a mistake."""
    cases = [(pair, case) for pair in pairs for case in pair.find_cases(recordings)]
    chosen = [(pair, case) for pair, case in cases if matches(keyword, case.name)]
    if not chosen:
        raise InputError("command line", "-k", repr(keyword), f"a word of {', '.join(case.name for _, case in cases)}")
    return chosen


def _keep(side: AnySide, pair: Pair, case: Any, output: Path, left_out: Collection[str] = ()) -> None:
    """Run a side of a pair and write its trace, with what one rounding does to it where it can be run again."""
    with contextlib.ExitStack() as stack:
        try:
            ran = stack.enter_context(side.trace(case))
            again = runs_of(side, case, ran.trace)
            if few := draws_of(again):
                ran.trace.spread = dict([*stages_of(again, ran.trace, few, lambda trace: trace)][-1])
        except InputError:
            raise
        except Exception as error:  # whatever the code of a side raises
            raise SideError(raised(RowKey.of_side(case.name, side.name), error).detail) from error
        if side is pair.port and pair.extend is not None:
            pair.extend(case, ran.trace)
        typer.echo(write_trace(ran.trace.without(left_out), output / (case.name or pair.name)))


def _check_outputs(places: dict[str, Path | None]) -> None:
    for option, place in places.items():
        check_output(place, option)


def _words(option: str, text: str, known: Collection[str] | None = None) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if text)
    for word in words:
        if known is not None and word not in known:
            raise InputError("command line", option, word, f"of {', '.join(known)}")
    return words


def _show(result: KitReport, report: Path | None, json: Path | None, console: Console) -> NoReturn:
    """Print and write the report; the exit code is the verdict."""
    print_report(result, console)
    if result.first:
        console.print(f"first: {result.first}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        result.write_json(json)
    if report is not None:
        result.write_html(report)
        console.print(f"report: {report}")
    raise typer.Exit(0 if result.passed else 1)


def main() -> None:
    """Entry point; the libraries' chatter goes nowhere, what goes wrong outside is a line and an exit code."""
    hush()
    try:
        app()
    except (InputError, SideError) as error:
        _end(2, f"error: {error}")
    except (KeyboardInterrupt, OSError, SystemExit) as error:
        _from_outside(error)


def _from_outside(error: BaseException) -> NoReturn:
    """Ctrl-C, a reader of the output that is gone, a disk that is full; typer makes exit codes of some of it."""
    causes = [error]
    while (before := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(before)
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        _end(130, "interrupted")
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process has ended)
        _end(141, "nobody reads the output")
    if isinstance(error, SystemExit):
        raise error
    _end(2, f"error: the system: found {error}, expected files and streams that can be read and written")


def _end(code: int, line: str) -> NoReturn:
    with contextlib.suppress(OSError):
        print(line.replace("\n", "\\n"), file=sys.stderr, flush=True)
    sys.exit(code)
