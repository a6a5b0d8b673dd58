"""Commands speak for themselves: the libraries' own chatter is turned off."""

from __future__ import annotations

from loguru import logger


def hush_libraries() -> None:
    """No log lines of Speculators, no progress bars and warnings of transformers."""
    from transformers.utils import logging

    logger.remove()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
