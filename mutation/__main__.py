"""``python -m mutation``: make mutants and let the parity suite judge them. ``python -m mutation report``: the page."""

from __future__ import annotations

import platform
import random
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from mutation import results
from mutation.explanations import Explanation, explain, load
from mutation.mutants import Mutant, few_a_place, mutants_of
from mutation.scope import files
from mutation.server import Server

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__, invoke_without_command=True)

Output = Annotated[Path, typer.Option(help="results, one line a mutant; mutants that are in it are not judged again")]


@app.callback()
def run(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="only modules whose path contains this")] = "",
    sample: Annotated[int, typer.Option(help="judge this many of every module, drawn; 0: all")] = 0,
    seed: Annotated[int, typer.Option(help="of all draws")] = 0,
    a_place: Annotated[int, typer.Option(help="make at most this many of one kind at one place; 0: all")] = 2,
    jobs: Annotated[int, typer.Option(help="mutants at a time")] = 1,
    keyword: Annotated[str, typer.Option("-k", help="judge by the cases whose name fits: words, and, or, not")] = "",
    leave: Annotated[Optional[Path], typer.Option("--except", help="make none that these results hold")] = None,  # noqa: UP045
    survivors: Annotated[bool, typer.Option(help="judge only those again that survived and could die")] = False,
    output: Output = Path("mutation.jsonl"),
) -> None:
    """Judge mutants of the modules in scope, and go on where an earlier run stopped."""
    if context.invoked_subcommand:
        return
    made, about = _make(module, sample, seed, a_place, set(results.read(leave).records) if leave else set())
    known = results.read(output).records
    entries = load() if survivors else None
    waiting = [each for each in made if _wanted(known.get(each.key), entries)]
    print(f"{len(made)} mutants, {len(waiting)} to judge", flush=True)
    server = Server(keyword)
    try:
        results.append(output, {**about, **_environment(), "keyword": keyword, **_suite(server.seconds)})
        for number, record in enumerate(server.judge(waiting, jobs), 1):
            results.append(output, record)
            print(f"{number}/{len(waiting)}", _line(record), flush=True)
    finally:
        server.close()


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="results")] = Path("mutation.jsonl"),
    markdown: Annotated[Optional[Path], typer.Option(help="write the page here")] = None,  # noqa: UP045
    fresh: Annotated[Optional[Path], typer.Option(help="results of others, which no check was written for")] = None,  # noqa: UP045
) -> None:
    """Sum up the results. Exit code 1: a survivor has no explanation in survivors.yaml, or an entry explains none."""
    from mutation.page import one_line, unused, write_page  # numpy, which a run imports with one thread

    found, entries = results.read(file), load()
    others = results.read(fresh) if fresh else None
    page, left = write_page(found, entries, others)
    if markdown is None:
        print(page)
    else:
        markdown.write_text(page)
    idle = unused([found, *([others] if others else [])], entries)
    for record in left:
        print(f"not explained: {one_line(record)}")
    for entry in idle:
        print(f"explains nothing: {entry}")
    raise typer.Exit(1 if left or idle else 0)


@app.command()
def compact(file: Annotated[Path, typer.Argument(help="results")] = Path("mutation.jsonl")) -> None:
    """Drop what the page does not show: earlier runs' lines, outdated records, mutants of sources that changed."""
    print(f"{results.compact(file)} lines dropped")


def _make(
    pattern: str, sample: int, seed: int, a_place: int, left_out: set[str]
) -> tuple[list[Mutant], dict[str, Any]]:
    """The chosen mutants, shuffled so that an unfinished run is a sample too, and what was chosen from."""
    chosen, modules = [], {}
    for file, group in files(pattern).items():
        found = mutants_of(file, group)
        mutants = [each for each in found.mutants if each.key not in left_out]
        few = few_a_place(mutants, a_place, seed) if a_place else mutants
        here = few if not sample or sample >= len(few) else random.Random(f"{seed} {file}").sample(few, sample)
        chosen += here
        modules[file] = {
            "group": group,
            "possible": len(found.mutants),
            "made": len(few),
            "left_out": dict(found.left_out),
        }
    random.Random(seed).shuffle(chosen)
    keys = [each.key for each in chosen]
    return chosen, {"seed": seed, "a_place": a_place, "sample": sample, "modules": modules, "chosen": keys}


def _wanted(record: dict[str, Any] | None, entries: list[Explanation] | None) -> bool:
    """Without ``entries`` what was never judged; with them the survivors, but for those they explain as equivalent."""
    if entries is None:
        return record is None
    if record is None or record["outcome"] != "survived":
        return False
    entry = explain(record, entries)
    return entry is None or not entry.equivalent


def _environment() -> dict[str, Any]:
    packages = ("cosmic-ray", "torch", "transformers", "speculators")
    return {"python": platform.python_version(), "packages": {name: version(name) for name in packages}}


def _suite(seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The cases that judge, and their processor time without a mutant."""
    total = sum(sum(parts.values()) for parts in seconds.values())
    return {"cases": sorted(seconds), "suite_seconds": round(total, 1)}


def _line(record: dict[str, Any]) -> str:
    where = f"{record['file']}:{record['line']} {record['operator']}"
    by = " ".join(str(record.get(name, "")) for name in ("check", "case", "exception")).strip()
    return f"{record['outcome']} {where} {by}"


if __name__ == "__main__":
    app()
