"""The one error that bad input raises, and where in a user's code another one came from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any

INSTALLED = "site-packages"


class InputError(ValueError):
    """Something handed in by the user is wrong: names the file, the field, what was found and what was expected."""

    def __init__(self, file: str | Path, field: str, found: Any, expected: Any) -> None:
        self.file, self.field, self.found, self.expected = str(file), field, found, expected
        super().__init__(f"{file}: {field}: found {found}, expected {expected}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, Any, Any]]:
        return InputError, (self.file, self.field, self.found, self.expected)


def place_of(error: BaseException) -> str:
    """``file:line``: of the innermost frame outside of torch, the harness and Python's own library, if there is one.

    A file of an installed package is named from that package's folder on.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_machinery(frame.filename)]
    return f"{_short((own or frames)[-1].filename)}:{(own or frames)[-1].lineno}" if frames else "nowhere"


def _is_machinery(file: str) -> bool:
    """A frame that runs what a user wrote, or that it calls: torch's, the harness', Python's."""
    import torch  # not before something was raised: pytest loads this in every session

    machinery = Path(torch.__file__).parent, Path(__file__).parent, sysconfig.get_path("stdlib")
    inside = [Path(file).is_relative_to(folder) for folder in machinery]
    return file.startswith("<") or any(inside[:-1]) or (inside[-1] and INSTALLED not in Path(file).parts)


def _short(file: str) -> str:
    path, here = Path(file), Path.cwd()
    if path.is_relative_to(here) and INSTALLED not in path.relative_to(here).parts:
        return str(path.relative_to(here))
    return file.rpartition(f"{INSTALLED}/")[2]
