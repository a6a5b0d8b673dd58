"""``speculator COMMAND ...`` or ``python -m ports COMMAND ...``: every command of this package under one name.

Nothing is imported before a command is chosen: its libraries take seconds to load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ports.commands import exit_code
from ports.errors import InputError, reason

COMMANDS = {
    "draft": ("ports.generate.draft", "from a chat model to a draft to serve: all of the following, in order"),
    "answers": ("ports.generate.answers", "the verifier answers prompts itself"),
    "records": (
        "ports.generate.__main__",
        "from dialogues to what a draft is trained on; also: records show, estimate",
    ),
    "vocabulary": ("ports.generate.vocabulary", "which tokens an Eagle3 draft can say"),
    "train eagle3": ("ports.eagle3.train", "train an Eagle3 draft on records"),
    "train hass": ("ports.hass.train", "train a HASS draft on records"),
    "check": ("ports.check.command", "a draft from its files to served tokens: what is wrong, and what to do"),
    "evaluate": ("ports.evaluate.__main__", "acceptance of a draft's proposals on held-out prompts"),
    "compare": ("ports.evaluate.compare", "which of two drafts is accepted more, and how sure that is"),
    "bench": ("ports.serving.bench", "tokens per second of a server with the draft and without"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit codes are the command's, see :func:`ports.commands.exit_code`."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: run(words))


def run(words: Sequence[str]) -> int:
    """The command that ``words`` begin with.

    Raises:
        InputError: there is none.
    """
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        of_one = [name for name in COMMANDS if name.split()[0] == words[0]]
        found = " ".join(words[:2] if of_one else words[:1])
        raise InputError("command line", "command", found, " | ".join(of_one or COMMANDS))
    return dispatch(name, words[len(name.split()) :])


def usage() -> str:
    """Every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["speculator COMMAND --help: the flags of a command", "", *lines])


def dispatch(name: str, words: Sequence[str]) -> int:
    """Run a command by its name; ``sys.argv`` becomes what its own program's would be.

    Raises:
        InputError: what it needs cannot be imported.
    """
    try:
        entry = import_module(COMMANDS[name][0]).main
    except ImportError as error:
        raise InputError(f"speculator {name}", "import", reason(error), "what it needs, installed") from error
    sys.argv = [f"speculator {name}", *words]
    return int(entry() or 0)
