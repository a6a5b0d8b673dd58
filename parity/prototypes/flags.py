"""The trainers' flags as the table in ``docs/training.md``, from the settings classes themselves."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ports.eagle3.settings import Eagle3Settings
from ports.training.settings import TrainingSettings

PAGE = Path("docs/training.md")
BEGIN, END = "<!-- flags -->", "<!-- /flags -->"


def as_table() -> str:
    """Every flag, its default and what it is for, as Markdown."""
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    lines += [_line(name, field) for name, field in Eagle3Settings.model_fields.items()]
    return "\n".join(lines)


def _line(name: str, field: FieldInfo) -> str:
    alone = "" if name in TrainingSettings.model_fields else "Eagle3: "
    text = f"{alone}{field.description or ''}".replace("|", "\\|").replace("<n>", "N").replace("*", "\\*")
    return f"| `--{name}` | {_default(field)} | {text} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value == [] else f"`{value}`"


def updated(page: str) -> str:
    """``page`` with the table of now between its two marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{as_table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
