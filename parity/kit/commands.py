"""``parity compare`` and ``parity trace``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from parity import fixtures
from parity.case import Case, find_cases
from parity.errors import InputError
from parity.kit.folders import compare_folders, read_names, read_tolerances
from parity.kit.verdict import TRACED
from parity.localise import trace_calls
from parity.report import print_report, write_html, write_json
from parity.runs.port import trace_port
from parity.select import matches
from parity.trace import GROUPS, Trace
from parity.trace_folder import write_trace

ALL = "all"

File = Optional[Path]  # noqa: UP045


def compare(
    original: Annotated[Path, typer.Argument(help="a trace, or a folder of traces: what is expected")],
    port: Annotated[Path, typer.Argument(help="the other side")],
    names: Annotated[File, typer.Option(help="JSON object: the original's names to the port's")] = None,
    tolerances: Annotated[File, typer.Option(help="JSON object: kind, bound and reason by quantity")] = None,
    checks: Annotated[str, typer.Option(help=f"comma-separated, of {', '.join(TRACED)}")] = ",".join(TRACED),
    report: Annotated[File, typer.Option(help="write the HTML report here")] = None,
    json: Annotated[File, typer.Option(help="write the rows as JSON here")] = None,
) -> None:
    """Compare traces written on two machines or under two versions. Exit code 0: all passed, 1: not, 2: bad input."""
    chosen = _words("--checks", checks, TRACED)
    result = compare_folders(
        original,
        port,
        names=read_names(names) if names else None,
        tolerances=read_tolerances(tolerances) if tolerances else None,
        checks=chosen,
    )
    console = Console()
    print_report(result.report, console)
    if result.first:
        console.print(f"first: {result.first}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        write_json(result.report, json)
    if report is not None:
        write_html(result.report, report)
        console.print(f"report: {report}")
    raise typer.Exit(0 if result.passed else 1)


def trace(
    algorithm: Annotated[str, typer.Argument(help="eagle3, hass or all")],
    output: Annotated[Path, typer.Argument(help="folder the traces go to, one folder a case")],
    recordings: Annotated[Path, typer.Option(help="folder of recorded cases")] = fixtures.RECORDINGS,
    keyword: Annotated[str, typer.Option("-k", help="only cases whose name fits: words, and, or, not")] = "",
    leave_out: Annotated[str, typer.Option(help=f"to save space: comma-separated, of {', '.join(GROUPS)}")] = "",
) -> None:
    """Run the shipped ports on recorded cases and write what they compute, to be compared elsewhere."""
    if algorithm not in (ALL, "eagle3", "hass"):
        raise InputError("command line", "algorithm", algorithm, "eagle3, hass or all")
    cases = find_cases(recordings, None if algorithm == ALL else algorithm)
    chosen = [case for case in cases if matches(keyword, case.name)]
    if not chosen:
        raise InputError("command line", "-k", repr(keyword), f"a word of {', '.join(case.name for case in cases)}")
    groups = _words("--leave-out", leave_out, GROUPS) if leave_out else ()
    for case in chosen:
        typer.echo(write_trace(trace_case(case).without(groups), output / case.name))


def trace_case(case: Case) -> Trace:
    """The port's run of a case, with its modules' calls on the longest row of the first batch."""
    trace = trace_port(case)
    trace_calls(case, trace)
    return trace


def _words(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            raise InputError("command line", option, word, f"of {', '.join(known)}")
    return words
