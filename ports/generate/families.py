"""Chat families: a table of what is put around a dialogue beside the tokenizer's own chat template, read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ports.errors import InputError
from ports.files import check_regular

TABLE = Path(__file__).parent / "families.yaml"


class Offsets(BaseModel):
    """The prototypes' rule for Llama: token counts of the text between two hard-coded headers."""

    model_config = ConfigDict(extra="forbid")

    rule: Literal["offsets"]
    user: str
    answer: str


class FirstMatch(BaseModel):
    """The prototypes' rule for Qwen and Mistral: where an answer's tokens occur first."""

    model_config = ConfigDict(extra="forbid")

    rule: Literal["first_match"]
    after: str
    before: str


class ChatFamily(BaseModel):
    """One entry of the table; see ``families.yaml``."""

    model_config = ConfigDict(extra="forbid")

    system: str | None = None
    template: str | None = None
    template_options: dict[str, Any] = Field(default_factory=dict)
    today: date | None = None
    prototype_mask: Annotated[Offsets | FirstMatch, Field(discriminator="rule")] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template is given; a template that asks for the date gets ``today``, on every day the same."""
        return self.template_options | ({} if self.today is None else {"strftime_now": self.today.strftime})

    def opened(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The dialogue after the family's system message, unless it has one of its own."""
        own = bool(messages) and messages[0]["role"] == "system"
        return [*([] if own or self.system is None else [{"role": "system", "content": self.system}]), *messages]

    def checked_template(self, tokenizer: Any) -> str:
        """The tokenizer's own chat template, else the family's.

        Raises:
            InputError: neither has one.
        """
        if getattr(tokenizer, "chat_template", None):
            return str(tokenizer.get_chat_template())
        if self.template is None:
            name = getattr(tokenizer, "name_or_path", "tokenizer")
            expected = "a tokenizer with a chat template, or --chat_template with a family that has one, as chatml"
            raise InputError(name, "chat_template", "nothing", expected)
        return self.template

    def render(self, tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
        """The text of a dialogue; raises InputError as :meth:`checked_template`, and whatever the template does."""
        own = {"tokenize": False, "chat_template": self.checked_template(tokenizer)}
        return str(tokenizer.apply_chat_template(list(messages), **self.variables, **options, **own))


def load_family(name: str) -> ChatFamily:
    """The family of that name in the table, or in ``FILE.yaml:NAME``.

    Raises:
        InputError: unreadable table, unknown name, or an entry with a wrong key or value.
    """
    file, _, entry = name.rpartition(":")
    table = Path(file) if file else TABLE
    entries = _read(table)
    if entry not in entries:
        raise InputError(table, "chat_template", entry, f"one of {', '.join(entries)}, or FILE.yaml:NAME")
    try:
        return TypeAdapter(ChatFamily).validate_python(entries[entry])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([entry, *map(str, first["loc"])])
        raise InputError(table, field, repr(first.get("input"))[:80], first["msg"]) from error


def _read(table: Path) -> dict[str, Any]:
    check_regular(table, "chat_template")
    try:
        content = yaml.safe_load(table.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(table, "chat_template", str(error).split("\n")[0], "a readable YAML file") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(table, "chat_template", type(content).__name__, "a mapping of families by name")
    return content
