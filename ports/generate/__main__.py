"""``speculator-generate [show|estimate|vocabulary] ...`` or ``python -m ports.generate ...``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from pydantic import Field
from rich.console import Console

from ports.commands import exit_code
from ports.generate.conversations import ConversationError
from ports.generate.prepare import say
from ports.generate.run import generate, prepare, summary
from ports.generate.settings import GenerationSettings
from ports.generate.show import show
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.training.settings import parse


class ShowSettings(GenerationSettings):
    """The same flags, and how many dialogues to print."""

    rows: int = Field(3, ge=1, description="dialogues to print")


def run_show(argv: Sequence[str]) -> None:
    """Print who is supervised."""
    settings = parse(ShowSettings, ["--outdir", ".", *argv])
    show(settings, settings.rows, Console())


def run_estimate(argv: Sequence[str]) -> None:
    """Say what a run would take."""
    for line in summary(prepare(parse(GenerationSettings, argv))):
        say(line)


def run_generate(argv: Sequence[str]) -> None:
    """Write records."""
    generate(parse(GenerationSettings, argv))


def run_vocabulary(argv: Sequence[str]) -> None:
    """Choose the draft's vocabulary."""
    chosen = write_vocabulary(parse(VocabularySettings, argv))
    share = chosen.covered / chosen.tokens if chosen.tokens else 0.0
    say(f"{chosen.draft_vocab_size} of {chosen.vocab_size} tokens cover {share:.2%} of {chosen.tokens:,}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "show": run_show,
    "estimate": run_estimate,
    "vocabulary": run_vocabulary,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see :func:`ports.commands.exit_code`."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    return exit_code(lambda: (command or run_generate)(words[1:] if command else words), ConversationError)


if __name__ == "__main__":
    sys.exit(main())
