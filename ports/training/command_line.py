"""Parse a command line into settings, with ``--config file.yaml`` under the flags, and speak plainly about mistakes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource

from ports.errors import InputError
from ports.files import check_regular

S = TypeVar("S", bound=BaseSettings)


def parse(settings_class: type[S], argv: Sequence[str]) -> S:
    """Settings from flags, environment, YAML file and defaults, in that order; ``--a-flag`` is ``--a_flag``.

    Raises:
        InputError: a wrong value or unknown key, with where it came from.
        SystemExit: argparse's, on an unknown flag or ``--help``.
    """
    argv, file = _take_config_flag(list(argv))
    content = _read_yaml(file) if file else {}
    _refuse_unknown(settings_class, file, content)
    argv = [_with_underscores(settings_class, word) for word in argv]
    layered = _with_sources(settings_class, argv, content)
    try:
        return layered()
    except ValidationError as error:
        raise _explain(error, file) from error


def _with_sources(settings_class: type[S], argv: list[str], content: dict[str, Any]) -> type[S]:
    class Layered(settings_class):  # type: ignore[misc,valid-type]
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls, cli_parse_args=argv, cli_prog_name=_program()
            )
            return flags, sources["env_settings"], _FileSource(settings_cls, content)

    Layered.__name__, Layered.__doc__ = settings_class.__name__, settings_class.__doc__
    return Layered


class _FileSource(PydanticBaseSettingsSource):
    """The YAML file's values, keyed the way the settings model reads them."""

    def __init__(self, settings_class: type[BaseSettings], content: dict[str, Any]) -> None:
        super().__init__(settings_class)
        self.content = content

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.content.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.content)


def _program() -> str:
    return Path(sys.argv[0]).name


def _take_config_flag(argv: list[str]) -> tuple[list[str], Path | None]:
    for position, word in enumerate(argv):
        if word == "--config":
            if position + 1 == len(argv):
                raise InputError("command line", "--config", "no file name", "a YAML file")
            return argv[:position] + argv[position + 2 :], Path(argv[position + 1])
        if word.startswith("--config="):
            return argv[:position] + argv[position + 1 :], Path(word.split("=", 1)[1])
    return argv, None


def _with_underscores(settings_class: type[S], word: str) -> str:
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    return f"--{name}{equals}{value}" if flag.startswith("--") and name in settings_class.model_fields else word


def _read_yaml(file: Path) -> dict[str, Any]:
    check_regular(file, "--config")
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(file, "--config", str(error).split("\n")[0], "a readable YAML file") from error
    if not isinstance(content, dict):
        raise InputError(file, "--config", type(content).__name__, "a mapping of settings")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _refuse_unknown(settings_class: type[S], file: Path | None, content: dict[str, Any]) -> None:
    unknown = sorted(set(content) - set(settings_class.model_fields))
    if unknown:
        raise InputError(
            str(file), unknown[0], "an unknown key", f"one of {', '.join(sorted(settings_class.model_fields))}"
        )


def _explain(error: ValidationError, file: Path | None) -> InputError:
    first = error.errors()[0]
    where = f"command line, environment or {file}" if file else "command line or environment"
    field = ".".join(str(part) for part in first["loc"]) or "settings"
    found = "nothing" if first["type"] == "missing" else repr(first.get("input"))
    return InputError(where, field, found, first["msg"])
