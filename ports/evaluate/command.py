"""``speculator evaluate``: acceptance of a draft's proposals by its verifier."""

from __future__ import annotations

from functools import wraps
from typing import Any

from rich.console import Console
from rich.table import Table

from ports import flags
from ports.commands import hushed, printable
from ports.evaluate.intervals import from_json
from ports.evaluate.measure import measure
from ports.evaluate.ties import described

NOT_COMPARED = (
    "tokens not compared with plain decoding: drawn ones differ from run to run; rejection keeps their distribution"
)


@wraps(measure)
def run(**choices: Any) -> int:
    result = measure(**choices)
    print_result(result, Console())
    return int(result["lossless"] is False)


def print_result(result: dict[str, Any], console: Console) -> None:
    """A row for every file of prompts, the acceptance length, and every answer that drafting changed."""
    kind = f"{result['algorithm']} draft{', untrained' if result['untrained'] else ''}"
    table = Table(title=f"{kind}: {result['drafts']:,} proposals for {result['tokens']:,} tokens")
    table.add_column("prompts", overflow="fold")
    places = range(1, result["speculative_tokens"] + 1)
    expected = ["expected"] if "expected_length" in result else []
    parts = list(result.get("contexts", ()))
    for name in ("tokens", "proposals", "length", *expected, *(f"rate {place}" for place in places), *parts):
        table.add_column(name, justify="right")
    for row in result["files"]:
        told, counts = row["intervals"], (f"{row['tokens']:,}", f"{row['drafts']:,}")
        lengths = [told["acceptance_length"], *([told["expected_length"]] if expected else [])]
        places_read = [row["contexts"].get(part) for part in parts]
        figures = [*lengths, *told["rate_per_position"], *places_read]
        table.add_row(row["name"], *counts, *(f"{from_json(each):.3f}" if each else "" for each in figures))
    console.print(table)
    for why, count in result["left_out_reasons"].items():
        console.print(f"{count} prompts left out: {printable(why)}", markup=False)
    if result["lossless"] is None:
        console.print(NOT_COMPARED)
    length = from_json(result["intervals"]["acceptance_length"])
    console.print(f"acceptance length {length.value:.3f} over {result['prompts']} prompts, 95 % interval {length}")
    if expected:
        console.print(f"by the distributions {from_json(result['intervals']['expected_length'])}")
    for row in result["files"]:
        for found in row["differences"]:
            where = f"{row['name']}: prompt {found['prompt']}, turn {found['turn']}, token {found['place']}"
            console.print(f"{where}: {described(found)}", markup=False)
    if result["near_ties"]:
        console.print(f"{result['near_ties']} near ties, which rounding decides; texts go apart from there")


command = flags.function_command(hushed(run))
