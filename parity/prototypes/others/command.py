"""``parity others``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from parity import fixtures
from parity.environment import describe
from parity.files import check_output
from parity.prototypes.explain.run import run_studies, speculators_algorithms
from parity.report.originals import print_studies, write_originals, write_studies_json


def others(
    eagle: Annotated[Optional[Path], typer.Option(help="root of a SafeAILab/EAGLE checkout at cb7e0841")] = None,  # noqa: UP045
    hass: Annotated[Optional[Path], typer.Option(help="root of a HArmonizedSS/HASS checkout at 38922e43")] = None,  # noqa: UP045
    recordings: Annotated[Path, typer.Option(help="folder of recorded cases and their fixture/")] = fixtures.RECORDINGS,
    json: Annotated[Optional[Path], typer.Option(help="write the studies as JSON here")] = None,  # noqa: UP045
    markdown: Annotated[Optional[Path], typer.Option(help="write the tables as Markdown here")] = None,  # noqa: UP045
) -> None:
    """Run other originals and show where each differs, and that named causes are all of it. Exit codes as for run."""
    check_output(json, "--json")
    check_output(markdown, "--markdown")
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
