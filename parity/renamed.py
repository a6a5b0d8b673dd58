"""Names of the version before: each is understood for this one, with a line that says the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from parity.errors import InputError

NAMES = {
    "Joined": "Fused",
    "Copied": "Replicated",
    "Cause": "KnownDifference",
    "instead": "replace_functions",
    "changed": "edit_module",
    "as_built": "keep_from_build",
    "within": "in_context",
}
"""What ``parity`` gives."""

CHECKS = {"paths": "cross_step_grad"}
QUANTITIES = {"path": "cross_step_grad", "after": "after_step1"}
"""What a tolerance is of."""

GONE = {"single_step": "compare_sides, of two modules to hold one by itself; its `first` is the module that errs"}
"""What ``parity`` gave, and what does as much."""

Made = TypeVar("Made", bound=Callable[..., Any])


def new_name(name: str, table: Mapping[str, str]) -> str:
    """The name of now; with a warning, one line, where it is an old one; InputError: it is gone."""
    if name in GONE:
        raise InputError("parity", name, "a name of the version before", GONE[name])
    if name in table:
        warnings.warn(f"{name} is {table[name]} now; the old name goes with the next version", FutureWarning, 3)
    return table.get(name, name)


def understands(**old: str) -> Callable[[Made], Made]:
    """Let a class take arguments by their old names too."""

    def of(made: Made) -> Made:
        init = vars(made)["__init__"]

        @wraps(init)
        def run(self: Any, *arguments: Any, **named: Any) -> None:
            for name in [name for name in named if name in old]:
                named[new_name(name, old)] = named.pop(name)
            init(self, *arguments, **named)

        setattr(made, "__init__", run)  # noqa: B010  mypy holds a class' own
        return made

    return of
