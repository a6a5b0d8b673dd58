"""``parity new``: the skeleton of a port, whose first failing test says what to do. ``docs/porting.md`` walks it."""

from __future__ import annotations

import keyword
import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from parity.errors import InputError
from parity.fixtures.folder import new_folder
from parity.pair import SHIPPED

TEMPLATES = Path(__file__).parent / "port"
SUFFIX = ".j2"
LONGEST = 16
"""So that no line of the generated files grows past 120 characters."""
FORM = re.compile(rf"(?=.{{2,{LONGEST}}}$)[a-z][a-z0-9_]*[a-z0-9]")


def new_port(name: str, output: Path = Path()) -> Path:
    """Write the package ``name`` into ``output`` and return its folder; it appears whole or not at all.

    Raises:
        InputError: a name that no package can have or that something else has, a folder that exists, or a disk that
            does not take it.
    """
    check_name(name)
    target = output / name
    if target.exists():
        raise InputError(target, "NAME", "a file or folder of that name", "a new name: nothing is overwritten")
    try:
        with new_folder(target) as folder:
            for file, text in render(name).items():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(target, "--output", str(error), "a folder that can be written to") from error
    return target


def check_name(name: str) -> None:
    """Refuse (InputError) what is no package's name, or what would hide one: of Python, of the environment, of
    Speculators' algorithms.
    """
    if not FORM.fullmatch(name):
        found, expected = name, f"2 to {LONGEST} lower-case letters, digits and underscores, a letter first: tree_draft"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        found, expected = f"{name}, a keyword of Python", "another name"
    elif name in SHIPPED or _speculators_has(name):
        found, expected = f"{name}, an algorithm that Speculators or this project has", "a name of its own"
    elif find_spec(name):
        found, expected = f"{name}, which is an installed package", "a name that hides nothing"
    else:
        return
    raise InputError("command line", "NAME", found, expected)


def _speculators_has(name: str) -> bool:
    """Is it an algorithm there? Asked without importing Speculators."""
    spec = find_spec("speculators")
    places = spec.submodule_search_locations or () if spec else ()
    return PathFinder.find_spec(name, [f"{place}/models" for place in places]) is not None


def render(name: str) -> dict[str, str]:
    """The files of the package by their path in it."""
    loader = FileSystemLoader(TEMPLATES)
    templates = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    title = "".join(word.capitalize() for word in name.split("_"))
    files = templates.list_templates(extensions=["j2"])
    return {file.removesuffix(SUFFIX): templates.get_template(file).render(name=name, title=title) for file in files}
