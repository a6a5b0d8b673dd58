"""``python -m ports.serving``: write a HASS checkpoint with its embedding folded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ports.commands import run_app
from ports.errors import InputError
from ports.evaluate.drafts import open_draft
from ports.files import check_output
from ports.hass import HassDraftModel
from ports.serving.layout import write_folded

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    draft: Annotated[Path, typer.Argument(help="HASS checkpoint")],
    output: Annotated[Path, typer.Argument(help="where the folded draft goes; a new or empty directory")],
    verifier: Annotated[Optional[str], typer.Option(help="default: the one that the checkpoint names")] = None,  # noqa: UP045
) -> None:
    """Fold the norm on the token into an embedding table of the draft's own. Exit code 2: bad input.

    Checkpoints are served as they lie; a folded one is larger by the table and needs half the multiplications in fc.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(output, "OUTPUT", "something there", "a new or empty directory")
    check_output(output, "OUTPUT")
    model = open_draft(draft, verifier)
    if not isinstance(model, HassDraftModel):
        kind = model.config.speculators_model_type
        raise InputError(draft, "speculators_model_type", kind, "hass; vLLM serves other checkpoints as they lie")
    typer.echo(write_folded(model, output))


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
