"""``speculator records [show]``; ``python -m ports.generate`` takes the prototypes' command lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.text import Text

from ports import flags
from ports.commands import printable_lines
from ports.errors import InputError
from ports.generate.conversations import ConversationError, load_conversations
from ports.generate.run import GenerationSettings, generate
from ports.verifier.tokenizer import open_tokenizer


class ShowSettings(GenerationSettings):
    """The flags of records, and how many dialogues to print."""

    outdir: Path = Field(Path(), description="not used")
    rows: int = Field(3, ge=1, description="dialogues to print")


def run_show(settings: ShowSettings) -> None:
    """Print who is supervised: the first dialogues, what is in the loss in bold green.

    Raises:
        InputError: a dialogue that cannot be used.
    """
    tokenizer, console = open_tokenizer(settings.model_path), Console()
    encoder = settings.encoder(tokenizer)
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    for number in range(min(settings.rows, len(conversations))):
        try:
            encoded = encoder(conversations.messages(number))
        except ConversationError as error:
            place = f"row {conversations.order[number]}"
            raise InputError(conversations.source, place, error, "a dialogue that can be used") from error
        print_dialogue(console, tokenizer, number, encoded.ids, encoded.loss_mask)


def print_dialogue(console: Console, tokenizer: Any, number: int, ids: Sequence[int], loss_mask: Sequence[int]) -> None:
    """Its tokens, those in the loss in bold green."""
    words = zip(map(printable_lines, map(tokenizer.decode, ids)), loss_mask)
    console.rule(f"dialogue {number}: {sum(loss_mask)} of {len(ids)} tokens in the loss")
    console.print(Text.assemble(*((word, "bold green" if on else "dim") for word, on in words)))


records = flags.command(GenerationSettings, generate)
show = flags.command(ShowSettings, run_show)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the prototypes' command lines; see :func:`ports.commands.exit_code`."""
    return flags.run(records, argv)


if __name__ == "__main__":
    sys.exit(main())
