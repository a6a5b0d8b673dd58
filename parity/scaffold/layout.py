"""Lay out a port: a package of few, short files, from the templates in ``port/``."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from parity.errors import InputError
from parity.fixtures.folder import new_folder
from parity.scaffold.name import check_name

TEMPLATES = Path(__file__).parent / "port"
SUFFIX = ".j2"


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


def render(name: str) -> dict[str, str]:
    """The files of the package by their path in it."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    files = sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob(f"*{SUFFIX}"))
    return {
        file.removesuffix(SUFFIX): templates.get_template(file).render(name=name, title=title(name)) for file in files
    }


def title(name: str) -> str:
    """``tree_draft`` -> ``TreeDraft``."""
    return "".join(word.capitalize() for word in re.split("_+", name))
