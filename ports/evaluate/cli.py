"""``python -m ports.evaluate``: acceptance of a draft's proposals by its verifier."""

from __future__ import annotations

import json as json_format
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from ports.commands import run_app
from ports.evaluate.measure import Request, measure
from ports.files import check_output_file

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(str, Enum):
    """Names of torch's precisions, or the verifier's own."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command()
def run(
    draft: Annotated[Path, typer.Argument(help="Speculators checkpoint of an Eagle3 or HASS draft")],
    prompts: Annotated[Path, typer.Option(help="held-out prompts or conversations: .txt, .jsonl or .json")],
    verifier: Annotated[Optional[str], typer.Option(help="default: the one that the checkpoint names")] = None,  # noqa: UP045
    tokens: Annotated[int, typer.Option(min=1, help="length of an answer at most")] = 128,
    speculative_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="tokens in a proposal; default: as many as the checkpoint names"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts at a time")] = 8,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="go on past a token that ends an answer")] = False,
    untrained: Annotated[bool, typer.Option("--untrained", help="the same draft as its training would start")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of the untrained weights")] = 0,
    device: Annotated[str, typer.Option(help="where both models run; default: cuda if there is one")] = "",
    dtype: Annotated[Dtype, typer.Option(help="precision of both models; auto: the verifier's own")] = Dtype.AUTO,
    chat_template: Annotated[
        str, typer.Option(help="chat family of conversations; default: as in the records that the draft was trained on")
    ] = "",
    json: Annotated[Optional[Path], typer.Option(help="write the result here as JSON")] = None,  # noqa: UP045
) -> None:
    """Decode greedily with a draft's proposals and count what the verifier accepts, as vLLM counts.

    Every answer is decoded without the draft too. Exit code 0: the tokens are the same, 1: they differ, 2: bad input.
    """
    if json is not None:
        check_output_file(json, "--json")
    choices = (
        verifier,
        tokens,
        speculative_tokens,
        batch_size,
        ignore_eos,
        untrained,
        seed,
        device,
        dtype.value,
        chat_template,
    )
    result = measure(Request(draft, prompts, *choices))
    print_result(result, Console())
    if json is not None:
        json.write_text(json_format.dumps(result, indent=1) + "\n")
    raise typer.Exit(0 if result["lossless"] else 1)


def print_result(result: dict[str, Any], console: Console) -> None:
    """A table of the positions, the acceptance length, and every answer that drafting changed."""
    kind = f"{result['algorithm']} draft{', untrained' if result['untrained'] else ''}"
    table = Table(title=f"{kind}: {result['drafts']:,} proposals for {result['tokens']:,} tokens")
    for name in ("position", "accepted", "rate"):
        table.add_column(name, justify="right")
    rows = zip(result["accepted_per_position"], result["rate_per_position"])
    for place, (count, rate) in enumerate(rows, 1):
        table.add_row(str(place), f"{count:,}", f"{rate:.3f}")
    console.print(table)
    if result["left_out"]:
        console.print(f"{result['left_out']} prompts left out: too long for the verifier")
    console.print(f"acceptance length {result['acceptance_length']:.3f} over {result['prompts']} prompts")
    for found in result["differences"]:
        console.print(
            f"prompt {found['prompt']}, token {found['place']}: {found['plain']} without the draft, {found['drafted']} "
            "with it; --dtype float32 tells a near tie from a mistake"
        )


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
