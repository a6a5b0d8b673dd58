"""``speculator COMMAND ...`` or ``python -m ports COMMAND ...``: every command of this package under one name.

Nothing is imported before a command is chosen: its libraries take seconds to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from ports import flags
from ports.errors import InputError, reason

MAKE, LOOK, SERVE = "From data to a draft", "Before and after", "Serving"


class Entry(NamedTuple):
    """Where a command is (``module:name``), under which heading and line the help has it, and a line to copy."""

    place: str
    panel: str
    help: str
    example: str


COMMANDS = {
    "draft": Entry(
        "ports.draft.command:command",
        MAKE,
        "from a chat model to a draft to serve: all of the following, in order",
        "--verifier Qwen/Qwen3-0.6B --data prompts.jsonl --out runs/mine",
    ),
    "answers": Entry(
        "ports.generate.answers:command",
        MAKE,
        "the verifier answers prompts itself",
        "--verifier Qwen/Qwen3-0.6B --data prompts.jsonl --out answers.jsonl",
    ),
    "records": Entry(
        "ports.generate.__main__:records",
        MAKE,
        "from dialogues to what a draft is trained on; also: records show",
        "--verifier Qwen/Qwen3-0.6B --data answers.jsonl --dataset any --out records",
    ),
    "records show": Entry(
        "ports.generate.__main__:show",
        MAKE,
        "who is supervised, in colour",
        "--verifier Qwen/Qwen3-0.6B --data answers.jsonl --dataset any",
    ),
    "vocabulary": Entry(
        "ports.generate.vocabulary:command",
        MAKE,
        "which tokens an Eagle3 draft can say",
        "--verifier Qwen/Qwen3-0.6B --data records --draft-vocab-size 16384",
    ),
    "train eagle3": Entry(
        "ports.trainers:train_eagle3",
        MAKE,
        "train an Eagle3 draft on records",
        "--verifier Qwen/Qwen3-0.6B --draft-config draft.json --data records --t2d records/t2d.npy "
        "--d2t records/d2t.npy --out checkpoints",
    ),
    "train hass": Entry(
        "ports.trainers:train_hass",
        MAKE,
        "train a HASS draft on records",
        "--verifier Qwen/Qwen3-0.6B --draft-config draft.json --data records --out checkpoints",
    ),
    "check": Entry(
        "ports.check.command:command",
        LOOK,
        "a draft from its files to served tokens: what is wrong, and what to do",
        "checkpoints/model4 --records records",
    ),
    "show": Entry(
        "ports.draft.show:command",
        LOOK,
        "what a directory holds: a run of draft, a draft or checkpoint, or records",
        "runs/mine",
    ),
    "evaluate": Entry(
        "ports.evaluate.command:command",
        LOOK,
        "acceptance of a draft's proposals on held-out prompts",
        "checkpoints/model4 --prompts held_out.jsonl",
    ),
    "compare": Entry(
        "ports.evaluate.compare:command",
        LOOK,
        "which of two drafts is accepted more, and how sure that is",
        "a.json b.json",
    ),
    "serve": Entry(
        "ports.serving.fold:command",
        SERVE,
        "prepare a HASS checkpoint for a server: half the multiplications in fc",
        "checkpoints/state_4 served",
    ),
    "bench": Entry(
        "ports.serving.bench:command",
        SERVE,
        "tokens per second of a server with the draft and without",
        "checkpoints/model4 --prompts held_out.jsonl",
    ),
}


class Group(TyperGroup):
    """Commands by their words, of which one may begin with another; what comes ``after`` words of it alone."""

    after = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """First words."""
        names = [name[len(self.after) :] for name in COMMANDS if name.startswith(self.after)]
        return list(dict.fromkeys(name.split()[0] for name in names))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Enough of one for the help."""
        name = self.after + cmd_name
        if name in COMMANDS:
            entry = COMMANDS[name]
            return TyperCommand(cmd_name, help=entry.help, rich_help_panel=entry.panel)
        inside = [each for each in COMMANDS if each.startswith(f"{name} ")]
        if not inside:
            return None
        group = Group(name=cmd_name, help=" | ".join(inside), no_args_is_help=False)
        group.after, group.rich_help_panel = f"{name} ", COMMANDS[inside[0]].panel
        return group

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command itself, imported now.

        Raises:
            InputError: there is none, or what it needs cannot be imported.
        """
        words = [word for word in args[:2] if not word.startswith("-")]
        for count in range(len(words), 0, -1):
            name = self.after + " ".join(words[:count])
            if name in COMMANDS:
                return name.removeprefix(self.after), load(name), args[count:]
        found = self.get_command(ctx, args[0])
        if found is None:
            known = [name for name in COMMANDS if name.startswith(self.after)]
            raise InputError("command line", "command", self.after + args[0], " | ".join(known))
        return args[0], found, args[1:]

    def invoke(self, ctx: Any) -> Any:
        """Raises InputError for words that are only the beginning of a command."""
        if self.after and not ctx._protected_args:
            of_one = [name for name in COMMANDS if name.startswith(self.after)]
            raise InputError("command line", "command", self.after.strip(), " | ".join(of_one))
        return super().invoke(ctx)

    @property
    def every_flag(self) -> set[str]:
        """Of all commands; a YAML file may serve several."""
        return {each for name in COMMANDS for each in load(name).names}

    def takers(self, flag: str) -> list[str]:
        """The commands that have a flag of that name, of those whose libraries are installed."""
        found = []
        for name in COMMANDS:
            with suppress(InputError):
                found += [name] * (flag in load(name).names)
        return found


def load(name: str) -> flags.Command:
    """A command by its words.

    Raises:
        InputError: what it needs cannot be imported.
    """
    module, _, attribute = COMMANDS[name].place.partition(":")
    try:
        found: flags.Command = getattr(import_module(module), attribute)
    except ImportError as error:
        raise InputError(f"speculator {name}", "import", reason(error), "what it needs, installed") from error
    found.epilog = f"Example: speculator {name} {COMMANDS[name].example}"
    return found


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"speculator {version('speculator-parity')}")
        raise typer.Exit


app = typer.Typer(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(no_args_is_help=False, invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="say the version and end")
    ] = False,
) -> None:
    """Train drafts for speculative decoding, measure and serve them. COMMAND --help tells the flags of a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(words: Sequence[str]) -> int:
    """Do what a command line asks for, and give its exit code; errors are raised."""
    return int(flags.carry_out(typer.main.get_command(app), words) or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit codes are the command's, see :func:`ports.commands.exit_code`."""
    return flags.run(lambda: typer.main.get_command(app), argv)
