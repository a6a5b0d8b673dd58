"""What the commands share: they speak for themselves, and bad input is one line and exit code 2."""

from __future__ import annotations

import sys

import typer
from loguru import logger

from ports.errors import InputError


def run_app(app: typer.Typer) -> None:
    """Run a command line; does not return."""
    hush_libraries()
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def hush_libraries() -> None:
    """No log lines of Speculators, no progress bars of datasets, none and no warnings of transformers."""
    import datasets
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
