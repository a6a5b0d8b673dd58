"""The one error that bad input raises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LONGEST_REASON = 300
REPORT = re.compile(r".*InputError: (.*?): ([^:\n]*): found (.*), expected (.*?)\s*", re.DOTALL)


class InputError(ValueError):
    """Something handed in by the user is wrong: names the file, the field, what was found and what was expected.

    A loader process hands its errors over as text, which torch gives to the constructor alone: ``InputError(report)``
    is the error that the report ends with.
    """

    def __init__(self, file: str | Path, field: str | None = None, found: Any = None, expected: Any = None) -> None:
        if field is None:
            file, field, found, expected = _last_error(str(file))
        self.file, self.field, self.found, self.expected = str(file), field, found, expected
        super().__init__(f"{file}: {field}: found {found}, expected {expected}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, Any, Any]]:
        return InputError, (self.file, self.field, self.found, self.expected)


def reason(error: BaseException) -> str:
    """What a library complained of, in one line."""
    words = " ".join(str(error).split())[:LONGEST_REASON]
    return f"no entry {words}" if isinstance(error, KeyError) else words or type(error).__name__


def _last_error(report: str) -> tuple[str, str, str, str]:
    match = REPORT.fullmatch(report)
    if match is None:
        raise TypeError("InputError takes file, field, found and expected, or a loader process's report")
    file, field, found, expected = match.groups()
    return file, field, found, expected
