"""May a new port have this name?"""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

from parity.errors import InputError
from parity.run import SHIPPED

FORM = re.compile(r"[a-z][a-z0-9_]*[a-z0-9]")
LONGEST = 16
"""So that no line of the generated files grows past 120 characters."""


def check_name(name: str) -> None:
    """Refuse (InputError) what is no package's name, or what would hide one: of Python, of the environment, of
    Speculators' algorithms.
    """
    if not FORM.fullmatch(name) or len(name) > LONGEST:
        expected = f"2 to {LONGEST} lower-case letters, digits and underscores, a letter first: tree_draft"
        raise _refused(name, expected)
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise _refused(f"{name}, a keyword of Python", "another name")
    if find_spec(name) is not None:
        raise _refused(f"{name}, which is an installed package", "a name that hides nothing")
    if name in _algorithms():
        raise _refused(f"{name}, an algorithm that Speculators or this project has", "a name of its own")


def _refused(found: str, expected: str) -> InputError:
    return InputError("command line", "NAME", found, expected)


def _algorithms() -> set[str]:
    """What Speculators would register, and the pairs that come with this package."""
    spec = find_spec("speculators")
    places = [str(Path(place) / "models") for place in (spec.submodule_search_locations or () if spec else ())]
    return {module.name for module in iter_modules(places)} | set(SHIPPED)
