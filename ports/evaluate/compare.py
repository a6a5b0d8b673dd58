"""``speculator compare``: which of two drafts is accepted more, over the same prompts, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped]

from ports import flags
from ports.commands import hushed, printable
from ports.errors import InputError, reason
from ports.evaluate.acceptance import Counted, per_pass
from ports.evaluate.intervals import LEVEL, Estimate
from ports.evaluate.measure import measure
from ports.evaluate.plot import check_outputs, write_json
from ports.files import read_json

MARGIN, POWER = 0.03, 0.8
"""The share of a length that matters where none is given, and how probable it is that enough prompts show it."""

SAME = ("speculative_tokens", "temperature", "length")
"""What two measurements must have in common."""


def run(
    first: Annotated[Path, typer.Argument(metavar="A", help="a draft, or what evaluate --json wrote")],
    second: Annotated[Path, typer.Argument(metavar="B", help="likewise")],
    prompts: Annotated[list[Path] | None, typer.Option(help="of drafts: as evaluate reads them")] = None,
    margin: Annotated[
        float | None, typer.Option(min=1e-4, max=1, help="share of B's length that does not matter; default 0.03")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="entries of each file; default: all")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    speculative_tokens: Annotated[int | None, typer.Option(min=1, help="tokens in a proposal")] = None,
    temperature: Annotated[float, typer.Option(help="0: greedy")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of draws")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the result here as JSON")] = None,
) -> int:
    """Say whether draft A is accepted more than draft B, of the same prompts: better, worse, or cannot tell.

    The difference of their acceptance lengths with its 95 % interval, paired over prompts; two one-sided tests say
    whether it is within the margin. Exit code 1: A is worse; with --margin: A is not shown to be better, nor the same
    within it. 2: bad input.
    """
    check_outputs(json, None)
    options = {
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "speculative_tokens": speculative_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    told = [_result(file, prompts or [], options) for file in (first, second)]
    pairs = paired(first, second, *told)
    every = list(chain.from_iterable(pairs.values()))
    rows = {**pairs, **({"all": every} if len(pairs) > 1 else {})}
    found = {name: verdict(rows[name], margin or MARGIN) for name in rows}
    print_rows(found, margin or MARGIN, Console())
    if json is not None:
        words = {name: {**vars(each), "difference": each.difference.as_json()} for name, each in found.items()}
        write_json(json, {"a": str(first), "b": str(second), "margin": margin or MARGIN, "rows": words})
    last = list(found.values())[-1]
    good = last.word != "worse" if margin is None else last.word == "better" or last.same
    return 0 if good else 1


@dataclass(frozen=True)
class Verdict:
    """On A and B over ``prompts``: lengths ``a`` and ``b``, their ``difference``, a ``word``, ``same`` within a margin.

    ``needed`` are the prompts that would show a difference of the margin.
    """

    prompts: int
    a: float
    b: float
    difference: Estimate
    word: str
    same: bool
    needed: int | None


Pair = tuple[Counted, Counted]


def verdict(pairs: Sequence[Pair], margin: float) -> Verdict:
    """By t over prompts: better or worse beyond the 95 % interval of the difference, the same where its 90 % interval
    lies within ``margin`` times B's length (Schuirmann's two one-sided tests at 5 %)."""
    one, other = (per_pass(each) for each in zip(*pairs))
    difference, narrow = one.minus(other), one.minus(other, 2 * LEVEL - 1)
    matters = margin * (1 + other.value)
    word = "better" if difference.low > 0 else "worse" if difference.high < 0 else "cannot tell"
    needed = None
    if len(pairs) > 1 and math.isfinite(difference.high):
        spread = float((one.moves - other.moves).std(ddof=1))
        reach = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)
        needed = max(2, math.ceil((reach * spread / matters) ** 2))
    same = -matters < narrow.low and narrow.high < matters
    return Verdict(len(pairs), 1 + one.value, 1 + other.value, difference, word, same, needed)


def paired(first: Path, second: Path, one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Pair]]:
    """Of each file the entries that both were asked.

    Raises:
        InputError: other settings, other files, or other prompts.
    """
    for name in SAME:
        if one.get(name) != other.get(name):
            raise InputError(second, name, other.get(name), f"{one.get(name)}, as in {first}")
    found: dict[str, list[Pair]] = {}
    ours, theirs = _counts(first, one), _counts(second, other)
    if [name for name, _ in ours] != [name for name, _ in theirs]:
        raise InputError(second, "files", ", ".join(name for name, _ in theirs), ", ".join(name for name, _ in ours))
    for number, ((name, mine), (_, yours)) in enumerate(zip(ours, theirs)):
        pairs = [(each, yours[place]) for place, each in mine.items() if place in yours]
        changed = next((each.prompt for each, twin in pairs if each.key != twin.key), None)
        if changed is not None or not pairs:
            what = "no entry" if changed is None else f"another prompt at {changed}"
            raise InputError(second, f"files[{number}].by_prompt", what, f"the prompts of {first}")
        found[f"{number}: {name}" if name in found else name] = pairs
    return found


def _result(place: Path, prompts: list[Path], options: dict[str, Any]) -> dict[str, Any]:
    if not place.is_dir():
        content = read_json(place, "result", "a draft's directory, or what speculator evaluate --json wrote")
        return content if isinstance(content, dict) else {}
    if not prompts:
        raise InputError("command line", "--prompts", "none", "held-out prompts that both drafts are asked")
    return measure(place, prompts, **options)


def _counts(file: Path, result: dict[str, Any]) -> list[tuple[str, dict[int, Counted]]]:
    """Each file's name and its entries, whose counts make its length; that is 1 plus the rates.

    Raises:
        InputError: what is no such result.
    """
    found = []
    try:
        for row in result["files"]:
            counted = [Counted.model_validate(each) for each in row["by_prompt"]]
            length = 1 + per_pass(counted).value
            for said in (row["acceptance_length"], 1 + sum(row["rate_per_position"])):
                if not math.isclose(length, said, rel_tol=1e-9):
                    raise InputError(file, f"{row['name']}: acceptance_length", said, f"{length}, by its prompts")
            found.append((str(row["name"]), {each.prompt: each for each in counted}))
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(file, "files", reason(error), "what speculator evaluate --json wrote") from error
    return found


def print_rows(found: dict[str, Verdict], margin: float, console: Console) -> None:
    """A row and a verdict for every file, and for all of them."""
    table, lines = Table(), []
    for name in ("prompts", "entries", "A", "B", "A - B"):
        table.add_column(name, justify="right" if name in ("entries", "A", "B") else "left", overflow="fold")
    for name, each in found.items():
        words = f"the same within {margin:.0%}" if each.same and each.word == "cannot tell" else each.word
        if words == "cannot tell" and each.needed:
            words += f": about {each.needed:,} prompts would show {margin:.0%}"
        table.add_row(printable(name), f"{each.prompts}", f"{each.a:.3f}", f"{each.b:.3f}", str(each.difference))
        lines.append(f"{name}: A is {words}" if words != "cannot tell" and "about" not in words else f"{name}: {words}")
    console.print(table)
    for line in lines:
        console.print(printable(line), markup=False, soft_wrap=True)


command = flags.function_command(hushed(run))
