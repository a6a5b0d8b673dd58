"""``speculator-generate [show|estimate|vocabulary] ...`` or ``python -m ports.generate ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ports.commands import exit_code
from ports.generate.chat import Encoded
from ports.generate.conversations import ConversationError, load_conversations
from ports.generate.run import generate, prepare, say, summary
from ports.generate.settings import GenerationSettings
from ports.generate.vocabulary import choose_vocabulary
from ports.training.settings import parse
from ports.training.verifier import open_tokenizer

ON, OFF = "bold green", "dim"


class ShowSettings(GenerationSettings):
    """The same flags, and how many dialogues to print."""

    rows: int = Field(3, ge=1, description="dialogues to print")


def run_show(argv: Sequence[str]) -> None:
    """Print who is supervised: the first dialogues with their answers in colour, and a table of their tokens."""
    settings, console = parse(ShowSettings, ["--outdir", ".", *argv]), Console()
    tokenizer = open_tokenizer(settings.model_path)
    encoder = settings.encoder(tokenizer)
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    for number in range(min(settings.rows, len(conversations))):
        encoded = encoder(conversations.messages(number))
        words = [tokenizer.decode([token]) for token in encoded.ids]
        console.rule(f"dialogue {number}: {sum(encoded.loss_mask)} of {len(encoded.ids)} tokens in the loss")
        console.print(Text.assemble(*((word, ON if on else OFF) for word, on in zip(words, encoded.loss_mask))))
        console.print(_table(encoded, words))


def _table(encoded: Encoded, words: Sequence[str]) -> Table:
    """Row p of training: its token, whether it is in the mask, and what each alignment has the draft predict there.

    Row p reads x[p+1] and predicts x[p+2]; the prototypes' alignment takes it if x[p] is in the mask, the chain's if
    x[p+1] is.
    """
    table = Table("row", "id", "token", "mask", "prototype predicts", "chain predicts")
    shown = [*(repr(word)[1:-1] for word in words), "(end)"]
    for p, (token, on) in enumerate(zip(encoded.ids, encoded.loss_mask)):
        follows = shown[p + 2] if p + 2 < len(shown) else ""
        predicted = [follows if any(encoded.loss_mask[at : at + 1]) else "" for at in (p, p + 1)]
        cells = [str(p), str(token), shown[p], str(on), *predicted]
        table.add_row(*map(Text, cells), style=ON if on else OFF)
    return table


def run_estimate(argv: Sequence[str]) -> None:
    """Say what a run would take."""
    for line in summary(prepare(parse(GenerationSettings, argv))):
        say(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see :func:`ports.commands.exit_code`."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"show": run_show, "estimate": run_estimate, "vocabulary": choose_vocabulary}
    command = commands.get(words[0]) if words else None
    if command is not None:
        return exit_code(lambda: command(words[1:]), ConversationError)
    return exit_code(lambda: generate(parse(GenerationSettings, words)), ConversationError)


if __name__ == "__main__":
    sys.exit(main())
