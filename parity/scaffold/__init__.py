"""``parity new``: the skeleton of a port and its suite, in the order of work. ``docs/porting.md`` walks it."""

from __future__ import annotations

import keyword
import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from parity.errors import InputError
from parity.files import write_folder, write_whole
from parity.pair import SHIPPED
from parity.scaffold.existing import describe

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    autoescape=False,
)
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

    def fill(folder: Path) -> None:
        for file, text in render(name).items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")

    write_folder(target, fill)
    return target


def new_pair(name: str, port: str, original: str, output: Path = Path()) -> Path:
    """Write ``NAME.py`` into ``output``, a pair of two classes that exist, and return it.

    Raises:
        InputError: a class that is none, or a name as in :func:`new_port`.
    """
    check_name(name, of_pair=True)
    target = output / f"{name}.py"
    if target.exists():
        raise InputError(target, "NAME", "a file of that name", "a new name: nothing is overwritten")
    text = TEMPLATES.get_template("pair/pair.py.j2").render(**describe(name, port, original, output))
    write_whole(target, text)
    return target


def check_name(name: str, of_pair: bool = False) -> None:
    """Refuse (InputError) what is no package's name, or what would hide one: of Python, of the environment, of
    Speculators' algorithms. A pair may be called as the algorithm that both of its sides are.
    """
    if not FORM.fullmatch(name):
        found, expected = name, f"2 to {LONGEST} lower-case letters, digits and underscores, a letter first: tree_draft"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        found, expected = f"{name}, a keyword of Python", "another name"
    elif name in SHIPPED or (not of_pair and _speculators_has(name)):
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
    title = "".join(word.capitalize() for word in name.split("_"))
    files = [file for file in TEMPLATES.list_templates(extensions=["j2"]) if file.startswith("port/")]
    texts = {file: TEMPLATES.get_template(file).render(name=name, title=title) for file in files}
    return {file.removeprefix("port/").removesuffix(SUFFIX): text for file, text in texts.items()}
