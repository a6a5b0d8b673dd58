"""``speculator-generate [show|estimate|vocabulary] ...`` or ``python -m ports.generate ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field
from rich.console import Console
from rich.text import Text

from ports.commands import exit_code, printable_lines
from ports.generate.conversations import ConversationError, load_conversations
from ports.generate.run import GenerationSettings, generate, prepare, say, summary
from ports.generate.vocabulary import choose_vocabulary
from ports.training.settings import parse
from ports.verifier.tokenizer import open_tokenizer


class ShowSettings(GenerationSettings):
    """The same flags, and how many dialogues to print."""

    rows: int = Field(3, ge=1, description="dialogues to print")


def run_show(argv: Sequence[str]) -> None:
    """Print who is supervised: the first dialogues, what is in the loss in bold green."""
    settings, console = parse(ShowSettings, ["--outdir", ".", *argv]), Console()
    tokenizer = open_tokenizer(settings.model_path)
    encoder = settings.encoder(tokenizer)
    conversations = load_conversations(settings.dataset, settings.data_path, settings.split)
    for number in range(min(settings.rows, len(conversations))):
        encoded = encoder(conversations.messages(number))
        words = zip(map(printable_lines, map(tokenizer.decode, encoded.ids)), encoded.loss_mask)
        console.rule(f"dialogue {number}: {sum(encoded.loss_mask)} of {len(encoded.ids)} tokens in the loss")
        console.print(Text.assemble(*((word, "bold green" if on else "dim") for word, on in words)))


def run_estimate(argv: Sequence[str]) -> None:
    """Say what a run would take."""
    say("\n".join(summary(prepare(parse(GenerationSettings, argv)))))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see :func:`ports.commands.exit_code`."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"show": run_show, "estimate": run_estimate, "vocabulary": choose_vocabulary}
    if words and words[0] in commands:
        return exit_code(lambda: commands[words[0]](words[1:]), ConversationError)
    return exit_code(lambda: generate(parse(GenerationSettings, words)), ConversationError)


if __name__ == "__main__":
    sys.exit(main())
