"""``parity run``, ``others``, ``record``, ``trace``, ``compare``, ``plot``, ``new`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

import fixtures
from parity.algorithms import ALGORITHMS
from parity.case import find_cases
from parity.doctor import print_environment
from parity.environment import describe
from parity.errors import InputError
from parity.kit.commands import compare, trace
from parity.live import request_for
from parity.report import print_report, write_html, write_json, write_performance, write_scaling
from parity.report.originals import print_studies, write_originals, write_studies_json
from parity.runs.original import OriginalRunError, record_original
from parity.scaffold import new_port
from parity.select import matches
from parity.verdict import Options, verdict
from ports.commands import run_app
from ports.files import check_output, check_output_file

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

app.command()(compare)
app.command()(trace)

Recordings = Annotated[Path, typer.Option(help="folder of recorded cases and their fixture/")]
Keyword = Annotated[str, typer.Option("-k", help="only cases whose name fits: words, and, or, not")]


@app.command()
def run(
    algorithm: Annotated[Optional[str], typer.Argument(help="eagle3 or hass; default: both")] = None,  # noqa: UP045
    recordings: Recordings = fixtures.RECORDINGS,
    prototype: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="root of a speculators checkout at 227b8a1b: run the original live"),
    ] = None,
    report: Annotated[Optional[Path], typer.Option(help="write the HTML report here")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="write the rows as JSON here")] = None,  # noqa: UP045
    keyword: Keyword = "",
) -> None:
    """Hold the ports against the prototypes and print a verdict. Exit code 0: all passed, 1: not, 2: bad input."""
    _check_outputs({"--json": json, "--report": report})
    chosen = _algorithms(algorithm)
    options = Options(recordings=recordings, algorithms=chosen, keyword=keyword, prototype=prototype)
    console = Console()
    with console.status("running") as status:
        result = verdict(options, lambda line: status.update(line))
    print_report(result, console)
    if json is not None:
        write_json(result, json)
    if report is not None:
        write_html(result, report)
        console.print(f"report: {report}")
    raise typer.Exit(0 if result.passed else 1)


@app.command()
def others(
    eagle: Annotated[Optional[Path], typer.Option(help="root of a SafeAILab/EAGLE checkout at cb7e0841")] = None,  # noqa: UP045
    hass: Annotated[Optional[Path], typer.Option(help="root of a HArmonizedSS/HASS checkout at 38922e43")] = None,  # noqa: UP045
    recordings: Recordings = fixtures.RECORDINGS,
    json: Annotated[Optional[Path], typer.Option(help="write the studies as JSON here")] = None,  # noqa: UP045
    markdown: Annotated[Optional[Path], typer.Option(help="write the tables as Markdown here")] = None,  # noqa: UP045
) -> None:
    """Run other originals and show where each differs, and that named causes are all of it. Exit codes as for run."""
    from parity.explain.run import run_studies, speculators_algorithms

    _check_outputs({"--json": json, "--markdown": markdown})
    registered = speculators_algorithms()
    checkouts = {name: root for name, root in (("eagle", eagle), ("hass", hass)) if root is not None}
    console = Console()
    with console.status("running") as status:
        studies = run_studies(checkouts, recordings, lambda line: status.update(line))
    print_studies(studies, console)
    if json is not None:
        write_studies_json(studies, json)
    if markdown is not None:
        write_originals(studies, markdown, describe(), registered)
    raise typer.Exit(0 if all(study.passed for study in studies) else 1)


@app.command()
def record(
    prototype: Annotated[Path, typer.Option(help="root of a speculators checkout at 227b8a1b")],
    output: Annotated[Path, typer.Option(help="folder the new recordings go to")] = Path("recordings"),
    algorithm: Annotated[Optional[str], typer.Argument(help="eagle3 or hass; default: both")] = None,  # noqa: UP045
    recordings: Recordings = fixtures.RECORDINGS,
    keyword: Keyword = "",
) -> None:
    """Run the unmodified prototypes on the cases of a recordings folder and write new recordings."""
    check_output(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    for name in _algorithms(algorithm):
        for case in find_cases(recordings, name):
            if matches(keyword, case.name):
                typer.echo(record_original(request_for(case, prototype, output)))


@app.command()
def plot(
    bench: Annotated[list[Path], typer.Argument(help="JSON of pytest benchmarks --benchmark-json, one or several")],
    output: Annotated[Path, typer.Option(help="the HTML page to write")] = Path("bench.html"),
    markdown: Annotated[Optional[Path], typer.Option(help="write the tables as Markdown here")] = None,  # noqa: UP045
) -> None:
    """Draw benchmark results: time and memory over length, speed-ups, share of the machine's peak."""
    _check_outputs({"--output": output, "--markdown": markdown})
    write_scaling(bench, output)
    if markdown is not None:
        write_performance(bench, markdown)
    typer.echo(f"report: {output}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the algorithm and its package, in lower case")],
    output: Annotated[Path, typer.Option(help="folder that the package is written into")] = Path(),
) -> None:
    """Lay out a port: config, model, objective, command, case, and a failing first test that says what to do."""
    folder = new_port(name, output)
    typer.echo(f"{folder}: run pytest -x {folder}, which says what to do; docs/porting.md walks the whole way")


@app.command()
def doctor(
    prototype: Annotated[Optional[Path], typer.Option(help="check this checkout too")] = None,  # noqa: UP045
) -> None:
    """Explain the environment: versions, numeric modes, what can run here and what is missing."""
    print_environment(Console(), prototype)


def _check_outputs(files: dict[str, Path | None]) -> None:
    for flag, file in files.items():
        if file is not None:
            check_output_file(file, flag)


def _algorithms(name: str | None) -> tuple[str, ...]:
    if name is None:
        return tuple(ALGORITHMS)
    if name not in ALGORITHMS:
        raise InputError("command line", "algorithm", name, " or ".join(ALGORITHMS))
    return (name,)


def main() -> None:
    """Entry point; the libraries' chatter goes nowhere."""
    run_app(app, OriginalRunError)


if __name__ == "__main__":
    main()
