"""A command line from settings: a pydantic model says names, kinds, defaults and help, Typer reads the words.

What is given counts in this order: flags, environment (``SPECULATOR_LR=1e-4``), ``--config file.yaml``, defaults. Flags
and keys are read with hyphens and underscores alike.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from ports.commands import exit_code, printable
from ports.errors import InputError
from ports.files import read_yaml
from ports.progress import Work, hide
from ports.spellings import NOW

UsageError: Any = typer.BadParameter.__base__
PREFIX = "SPECULATOR_"
"""Of the environment's names."""

KINDS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
"""What a reader of the help sees."""

CONFIG = f"YAML file, a flag and its value a line; the environment ({PREFIX}LR=1e-4) counts more, flags most"

S = TypeVar("S", bound=BaseModel)


class Command(TyperCommand):
    """Parsed, it gives what is to be run, without arguments. A program of its own takes the prototypes' words."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Below ``speculator`` without those that are the prototypes' alone."""
        every: list[Any] = super().get_params(ctx)
        return [each for each in every if ctx.parent is None or not each.hidden]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Of the words, respelled."""
        words = [_respelled(word, ctx.parent is None) for word in args]
        try:
            return super().parse_args(ctx, list(words))
        except UsageError as error:
            error.ctx = ctx  # not every one has it, and what is wanted is said by its flags
            error.unknown = self._unknown(ctx, words) if hasattr(error, "possibilities") else []
            raise

    @property
    def names(self) -> set[str]:
        """Of the flags and arguments that it has below ``speculator``."""
        every: list[Any] = self.params
        return {str(each.name) for each in every if not each.hidden}

    def _unknown(self, ctx: Any, words: list[str]) -> list[str]:
        """All flags of a command line that are none; a parser stops at the first."""
        found: dict[str, None] = {}
        for _ in words:
            try:
                self.make_parser(ctx).parse_args(list(words))
            except UsageError as error:
                if not hasattr(error, "possibilities"):
                    break
                found[error.option_name] = None
                words = [word for word in words if word.partition("=")[0] != error.option_name]
        return [*found]


def _respelled(word: str, theirs: bool) -> str:
    """A word of a command line, a flag with hyphens; with our name for a prototype's where these are understood."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    name = flag[2:].replace("-", "_")
    ours = NOW.get(name) if theirs else None
    return f"--{(ours or name).replace('_', '-')}{equals}{value}"


def command(settings: type[S], run: Callable[[S], Any]) -> Command:
    """A command whose flags become ``settings``, which ``run`` gets; what it returns is the exit code.

    Args:
        settings: where it has ``panels``, these are headings of the help, by the first field below each.
        run: does the work.
    """

    def call(context: typer.Context, config: Path | None, **values: Any) -> Any:
        given = {name: value for name, value in values.items() if _source(context, name) != "DEFAULT"}
        return partial(run, _validated(settings, given, context, config))

    panels, panel, options = getattr(settings, "panels", {}), None, []
    for name, field in settings.model_fields.items():
        panel = panels.get(name, panel)
        options.append(_parameter(field.alias or name, field, panel))
    return _made(call, options, settings.__doc__)


def function_command(function: Callable[..., Any]) -> Command:
    """The same of a function with Typer's annotations."""

    def call(context: typer.Context, config: Path | None, **values: Any) -> Any:
        return partial(function, **values)

    given = inspect.signature(function, eval_str=True).parameters.values()
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in given]
    return _made(call, keywords, function.__doc__)


def _made(call: Callable[..., Any], options: Sequence[inspect.Parameter], doc: str | None) -> Command:
    help_text = inspect.cleandoc(doc or "").partition("\n\nArgs:")[0].partition("\n\nRaises:")[0]
    keyword = inspect.Parameter.KEYWORD_ONLY
    flag = typer.Option(is_eager=True, callback=_read_config, metavar="PATH", help=CONFIG)
    extra = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        inspect.Parameter("config", keyword, default=None, annotation=Annotated[Path | None, flag]),
    ]
    call.__signature__ = inspect.Signature([*options, *extra])  # type: ignore[attr-defined]
    call.__annotations__ = {}
    app = typer.Typer(add_completion=False)
    context = {"auto_envvar_prefix": PREFIX.rstrip("_"), "help_option_names": ["-h", "--help"]}
    app.command(cls=Command, help=help_text, context_settings=context)(call)
    made: Any = typer.main.get_command(app)
    for parameter in made.params:
        parameter.show_envvar = False
    return made


def _parameter(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """One flag: its text is for pydantic to read, of its kind only the help knows."""
    flag, kind = f"--{name.replace('_', '-')}", _plain(field.annotation)
    several, choices = get_origin(kind) is list, _choices(kind)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=field.description,
        metavar=None if kind is bool else "|".join(choices) or KINDS.get(kind, "TEXT"),
        autocompletion=(lambda: choices) if choices else None,
        rich_help_panel=panel,
        hidden=NOW.get(name, name) is None,
        show_default=default not in (None, []),
    )
    if not field.is_required() and not isinstance(default, (bool, list, type(None))):
        default = str(default.value if isinstance(default, Enum) else default)
    read_as: Any = bool if kind is bool else list[str] if several else str | None
    if field.is_required():
        default, read_as = inspect.Parameter.empty, str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[read_as, option]
    )


def _plain(annotation: Any) -> Any:
    """Of a union with None the other part."""
    if get_origin(annotation) in (Union, types.UnionType):
        [kind] = [part for part in get_args(annotation) if part is not type(None)]
        return kind
    return annotation


def _choices(kind: Any) -> list[str]:
    """The words that a flag may have for a value, if these are all."""
    if get_origin(kind) is list:
        return _choices(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return [str(each) for each in get_args(kind)]
    return [str(each.value) for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _source(context: typer.Context, name: str) -> str:
    """Where a value is from, as Typer names it."""
    source = context.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """``--config``: what the file says stands below flags and environment.

    Keys that only another command of ``speculator`` has are for that one: a file serves several.

    Raises:
        InputError: unreadable, or a key that is no flag.
    """
    if file is None or context.resilient_parsing:
        return file
    mine: Any = context.command
    flags = {str(each.name): each for each in mine.get_params(context) if each.name != "config"}
    root = context.find_root().command
    values = {}
    for key, value in read_yaml(file, "--config", "a mapping of settings").items():
        name = key.replace("-", "_")
        if name in flags:
            values[name] = [value] if flags[name].multiple and isinstance(value, str) else value
        elif name not in getattr(root, "every_flag", ()):
            raise InputError(file, name, "an unknown key", f"one of {', '.join(sorted(flags))}")
    context.default_map = values
    return file


def _validated(settings: type[S], given: Mapping[str, Any], context: typer.Context, file: Path | None) -> S:
    """Settings of what was ``given``.

    Raises:
        InputError: every wrong value, with where it came from.
    """
    try:
        chosen = settings(**given)
    except ValidationError as error:
        first, *more = (_refused(each, settings, context, file) for each in error.errors())
        expected = "; ".join([str(first.expected), *map(str, more)])
        raise InputError(first.file, first.field, first.found, expected) from error
    if not getattr(chosen, "progress", True):
        hide()
    if getattr(chosen, "trust_remote_code", False):
        from ports.verifier.trust import trust_remote_code  # with transformers, which help and version do not need

        trust_remote_code()
    return chosen


def _refused(
    error: Mapping[str, Any], settings: type[BaseModel], context: typer.Context, file: Path | None
) -> InputError:
    """One of pydantic's errors as ours."""
    field = ".".join(str(part) for part in error["loc"])
    if not field:
        where = "command line or environment" + (f" or {file}" if file else "")
        return InputError(where, "settings", "several that do not go together", error["msg"])
    taken = str(error["loc"][0])
    place, name = _place(_source(context, taken), field, file)
    return InputError(place, name, repr(error.get("input")), _wanted(error, settings, taken))


def _wanted(error: Mapping[str, Any], settings: type[BaseModel], name: str) -> str:
    """What pydantic expects; of words, what each does, which the help says of the flag."""
    if error["type"] not in ("enum", "literal_error"):
        return str(error["msg"])
    said = [field.description for own, field in settings.model_fields.items() if name in (own, field.alias)]
    return ": ".join([error["ctx"]["expected"], *filter(None, said)])


def _place(source: str, field: str, file: Path | None) -> tuple[str | Path, str]:
    """Where a value is from, and what it is called there."""
    if source == "ENVIRONMENT":
        return "environment", PREFIX + field.upper()
    if source == "DEFAULT_MAP" and file is not None:
        return file, field
    return "command line", f"--{field.replace('_', '-')}"


def read(made: Any, words: Sequence[str]) -> Any:
    """What a command line asks for, to be called; or the exit code of one that asks for help.

    Raises:
        InputError: a flag or a command that is none, or a value that is missing or wrong.
    """
    try:
        return made.main(args=list(words), standalone_mode=False)
    except UsageError as error:
        unknown = getattr(error, "unknown", [])
        if len(unknown) > 1:
            advice = ", ".join(f"{_expected(error, flag)} for {flag}" for flag in unknown)
            raise InputError("command line", ", ".join(unknown), "no such flags", advice) from error
        name, found = _without_markup(error)
        raise InputError("command line", name, found, _expected(error, name)) from error


def _without_markup(error: Any) -> tuple[str, str]:
    """What is wrong with which word."""
    parameter = getattr(error, "param", None)
    name = getattr(error, "option_name", None) or (parameter.opts[0] if parameter is not None else "words")
    missing, unknown = parameter is not None and not error.message, hasattr(error, "possibilities")
    said = error.message if unknown else error.format_message()
    message = "nothing" if missing else " ".join(str(said).split())
    return str(name), message.rstrip(".")


def _expected(error: Any, name: str) -> str:
    """What a flag that is there is for, our word for a prototype's, or where to look."""
    flags = {flag: each for each in error.ctx.command.get_params(error.ctx) for flag in each.opts} if error.ctx else {}
    said = getattr(flags.get(name), "help", None)
    return said or (_advice(error.ctx, name, flags) if hasattr(error, "possibilities") else "") or "what --help lists"


def _advice(context: Any, flag: str, flags: Collection[str]) -> str:
    """On an unknown flag: what it is called here, which commands take it, or what it resembles."""
    word = flag[2:].replace("-", "_")
    word = NOW.get(word) or word
    ours = f"--{word.replace('_', '-')}"
    if ours in flags:
        return ours
    root = context.find_root().command
    takers = ", ".join(root.takers(word)) if hasattr(root, "takers") else ""
    if takers:
        return f"{ours} in {takers} alone"
    return " or ".join(get_close_matches(flag, flags, cutoff=0.8))


def parse(settings: type[S], words: Sequence[str]) -> S:
    """Settings of a command line, environment and file.

    Raises:
        InputError: see :func:`read`.
        SystemExit: ``--help``.
    """
    found = read(command(settings, lambda chosen: chosen), words)
    if not callable(found):
        raise SystemExit(found)
    chosen: S = found()
    return chosen


def carry_out(made: Any, words: Sequence[str]) -> Any:
    """Read a command line and do what it asks for, as work that is shown; errors are raised."""
    name = " ".join(takewhile(lambda word: not word.startswith("-"), words[:2]))
    with Work(printable(name) or "working"):
        found = read(made, words)
        return found() if callable(found) else found


def run(made: Any, words: Sequence[str] | None = None) -> int:
    """The same for a terminal, by default of this process' words; for exit codes see :func:`ports.commands.exit_code`.

    A function in place of a command makes it: a Ctrl-C while it does ends like any other.
    """
    words = sys.argv[1:] if words is None else words
    return exit_code(lambda: carry_out(made() if inspect.isfunction(made) else made, words))
