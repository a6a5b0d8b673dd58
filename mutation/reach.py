"""Which lines of the ports a part of the suite runs, and which lines a mutant sits on.

A mutant on a statement that nothing runs changes nothing: it is known to survive without a run.
"""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mutation.scope import ROOT

Lines = dict[str, set[int]]
"""File from the root -> line numbers."""


@contextmanager
def watch() -> Iterator[Lines]:
    """Collect the lines of the ports that run inside of the block."""
    prefix, found = f"{ROOT / 'ports'}/", {}

    def enter(frame: FrameType, event: str, value: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(prefix):
            return None
        lines = found.setdefault(file, set())

        def step(frame: FrameType, event: str, value: Any) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return step

        return step

    lines: Lines = {}
    sys.settrace(enter)
    threading.settrace(enter)
    try:
        yield lines
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        lines.update({file[len(str(ROOT)) + 1 :]: numbers for file, numbers in found.items()})


def statement_lines(tree: ast.Module, line: int) -> set[int] | None:
    """The lines of the innermost statement at ``line``, of its header where it has a body; None outside of functions.

    What stands outside of functions runs when the module is imported, and everything can depend on it.
    """
    found: tuple[ast.AST, bool] | None = None
    for node, inside in _statements(tree, False):
        if _first(node) <= line <= _last(node):
            found = node, inside
    if found is None or not found[1]:
        return None
    return set(range(_first(found[0]), _last(found[0]) + 1))


def _statements(tree: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Statements and except clauses with whether a function holds them, outer ones first."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.stmt, ast.excepthandler)):
            yield node, inside
        yield from _statements(node, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _first(node: Any) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _last(node: Any) -> int:
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if isinstance(body, list) and body else int(node.end_lineno)
