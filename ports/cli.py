"""``speculator COMMAND ...`` or ``python -m ports COMMAND ...``: every command of this package under one name.

Nothing is imported before a command is chosen: its libraries take seconds to load.
"""

from __future__ import annotations

import inspect
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
    "vocabulary": ("ports.generate.__main__", "which tokens an Eagle3 draft can say"),
    "train eagle3": ("ports.eagle3.train", "train an Eagle3 draft on records"),
    "train hass": ("ports.hass.train", "train a HASS draft on records"),
    "evaluate": ("ports.evaluate.__main__", "acceptance of a draft's proposals on held-out prompts"),
    "bench": ("ports.serving.bench", "tokens per second of a server with the draft and without"),
}
OWN_WORD = {"vocabulary"}
"""Commands whose module has others too, and is told which."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit codes are the command's, see :func:`ports.commands.exit_code`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        return exit_code(lambda: print(usage()))
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        return exit_code(lambda: _refuse(words))
    rest = words[len(name.split()) :]
    return dispatch(name, rest)


def usage() -> str:
    """Every command in a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["speculator COMMAND --help: the flags of a command", "", *lines])


def _refuse(words: Sequence[str]) -> None:
    of_one = [name for name in COMMANDS if name.split()[0] == words[0]]
    raise InputError(
        "command line", "command", " ".join(words[:2] if of_one else words[:1]), " | ".join(of_one or COMMANDS)
    )


def dispatch(name: str, words: Sequence[str]) -> int:
    """Run a command by its name; ``sys.argv`` becomes what its own program's would be."""
    try:
        run = import_module(COMMANDS[name][0]).main
    except ImportError as error:
        found = reason(error)
        return exit_code(lambda: _absent(name, found))
    words = [name, *words] if name in OWN_WORD else list(words)
    sys.argv = [f"speculator {name}", *words]
    return int((run(words) if inspect.signature(run).parameters else run()) or 0)


def _absent(name: str, found: str) -> None:
    raise InputError(f"speculator {name}", "import", found, "what it needs, installed")
