"""The one error that bad input raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something handed in by the user is wrong: names the file, the field, what was found and what was expected."""

    def __init__(self, file: str | Path, field: str, found: Any, expected: Any) -> None:
        self.file, self.field, self.found, self.expected = str(file), field, found, expected
        super().__init__(f"{file}: {field}: found {found}, expected {expected}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, Any, Any]]:
        return InputError, (self.file, self.field, self.found, self.expected)
