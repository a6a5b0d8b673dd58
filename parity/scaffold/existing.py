"""``parity new NAME --port CLASS --original FILE:CLASS``: a pair for a class that exists, from what both look like."""

from __future__ import annotations

import contextlib
import inspect
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parity.environment import quietly
from parity.errors import InputError
from parity.pair import module_of
from parity.suggest import suggest_names

LOSSES = ("loss", "metric", "objective")
"""What a function is called that a loss is made in."""


@dataclass(frozen=True)
class Existing:
    """A class of one side: where it is, how it is made and called, and where its loss is made."""

    role: str
    kind: type[nn.Module]
    folder: str
    module: str

    @property
    def name(self) -> str:
        return self.kind.__name__

    @property
    def configs(self) -> dict[str, Any]:
        """The arguments that have to be given, each with the class that it is annotated as, or None."""
        known: dict[str, Any] = {}
        with contextlib.suppress(NameError):  # of what is imported for type checkers alone
            known = typing.get_type_hints(self.kind.__init__)
        needed = [one for one in _parameters(self.kind.__init__) if one.default is one.empty]
        classes = {one.name: known.get(one.name) for one in needed}
        return {name: kind if inspect.isclass(kind) and _bare(kind) else None for name, kind in classes.items()}

    @property
    def call(self) -> str:
        """How one is made; dots stand where somebody has to say more."""
        words = [f"{name}={f'{kind.__name__}()' if kind else '...'}" for name, kind in self.configs.items()]
        return f"{self.role.title()}({', '.join(words)})"

    @property
    def imports(self) -> list[str]:
        configs = [f"from {kind.__module__} import {kind.__name__}" for kind in self.configs.values() if kind]
        return [f"from {self.module} import {self.name} as {self.role.title()}", *configs]

    @property
    def arguments(self) -> str:
        """What its forward is called with."""
        return ", ".join(f"`{one.name}`" for one in _parameters(self.kind.forward))

    @property
    def losses(self) -> dict[str, list[str]]:
        """Functions that its forward calls and that make a loss, each with the arguments that have to be given."""
        forward = inspect.unwrap(self.kind.forward)
        called = [forward.__globals__.get(name) for name in forward.__code__.co_names]
        made = [one for one in called if inspect.isfunction(one) and any(word in one.__name__ for word in LOSSES)]
        needed = {one: [each.name for each in _parameters(one) if each.default is each.empty] for one in made}
        return {f"{one.__module__}.{one.__name__}": names for one, names in needed.items()}

    def build(self) -> nn.Module:
        """One of no memory."""
        with torch.device("meta"), quietly():
            return self.kind(**{name: kind() for name, kind in self.configs.items()})


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those with a name, without ``self``."""
    found = inspect.signature(function).parameters.values()
    return [one for one in found if one.name != "self" and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _bare(kind: type) -> bool:
    """Is it a configuration that can be made without arguments?"""
    return "config" in kind.__name__.lower() and all(one.default is not one.empty for one in _parameters(kind))


def existing(role: str, place: str, output: Path) -> Existing:
    """A module's class, by ``FILE.py:CLASS`` or ``package.module:CLASS``.

    Raises:
        InputError: there is none, or its module cannot be imported.
    """
    where, _, name = place.rpartition(":")
    try:
        module = module_of(where, f"--{role}") if where else None
    except InputError:
        raise
    except Exception as error:  # whatever a module does when it is imported
        raises = f"{place}, which raises {type(error).__name__}: {error}"
        expected = "a module that can be imported, or a FILE.py of yours that makes it so: docs/existing.md"
        raise InputError("command line", f"--{role}", raises, expected) from error
    found = getattr(module, name, None)
    if module is None or not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise InputError("command line", f"--{role}", place, "FILE.py:CLASS or package.module:CLASS of a nn.Module")
    root = Path(where).resolve().parents[module.__name__.count(".")] if where.endswith(".py") else output.resolve()
    folder = Path(os.path.relpath(root, output.resolve())).as_posix()
    return Existing(role.upper(), found, "" if folder == "." else folder, module.__name__)


def describe(name: str, port: str, original: str, output: Path) -> dict[str, Any]:
    """What the template of a pair says, of two classes."""
    sides = [existing("original", original, output), existing("port", port, output)]
    try:
        found = str(suggest_names(*(side.build() for side in sides))).partition("\nnot matched")
    except Exception as error:  # whatever a constructor says to what it is given
        found = "NameMap()", "", ""
        notes = [
            f"No names were suggested, {type(error).__name__}: print(suggest_names(ORIGINAL, PORT)) when both build"
        ]
    else:
        notes = [line for line in (found[1] + found[2]).strip().splitlines() if line]
    imports = sorted({line for side in sides for line in side.imports})
    taps, said = _taps(*sides)
    words = {"name": name, "original": sides[0], "port": sides[1], "taps": taps}
    return {**words, "names": found[0], "notes": [*said, *notes], "imports": imports}


def _taps(*sides: Existing) -> tuple[list[dict[str, dict[str, str]]], list[str]]:
    """What both sides' loss functions are given by the same name, or where they are."""
    made = [side.losses for side in sides]
    if len(made[0]) != 1 or len(made[1]) != 1:
        places = [f"{side.role}: {', '.join(found) or 'outside of forward'}" for side, found in zip(sides, made)]
        return [{}, {}], [f"No taps: losses are made in several places or outside. {'; '.join(places)}"]
    (mine, given), (theirs, taken) = (*made[0].items(), *made[1].items())
    shared = {name: name for name in given if name in taken}
    return [{mine: shared}, {theirs: shared}], []
