"""Places in a module where no mutant is made, by rules about code; none of them looks at what a mutant did.

Spans are ((line, column), (line, column)) of the source, lines from 1 and columns from 0, ends exclusive.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mutation.scope import KEPT_NAMES, LEFT_OUT_NAMES, SIZES

Place = tuple[int, int]

RULES = {
    "annotation": "annotations and aliases of types: nothing evaluates them",
    "message": "what an exception or a warning says to a person",
    "declaration": "options of a dataclass or of a pydantic model: they guard against programmers",
    "default": "what a parameter is when a caller leaves it out: a run's settings say every value",
    "size": "how much is worked on at a time: time and memory depend on it, numbers do not",
    "command": "what runs only as a script",
    "elsewhere": "needs what no parity run has: a GPU, several processes, DeepSpeed, signals, a command line",
    "same": "another word for it: & is * and | is + of truth values, `is` is == of None, types and enum members",
}
"""Rule -> why."""

SAME = (
    "ReplaceBinaryOperator_BitAnd_Mul",
    "ReplaceBinaryOperator_BitOr_Add",
    "ReplaceComparisonOperator_Is_Eq",
    "ReplaceComparisonOperator_IsNot_NotEq",
)
"""Operators of the rule ``same``: the ports use & and | on truth values, dicts and sets alone."""


@dataclass(frozen=True)
class Span:
    """A stretch of source that ``rule`` leaves out."""

    rule: str
    start: Place
    end: Place

    def holds(self, place: Place) -> bool:
        return self.start <= place < self.end


def left_out(file: str, source: str) -> list[Span]:
    """Every stretch of ``source`` that a rule leaves out; ``file`` from the project's root."""
    lines = source.splitlines()
    spans = [_span(lines, rule, node) for node in _module_nodes(source) for rule, node in _ruled(node)]
    spans += [_span(lines, "elsewhere", node) for node in _elsewhere(file, source)]
    return spans + [_span(lines, "size", node) for node in _sizes(file, source)]


def rule_at(spans: list[Span], place: Place) -> str | None:
    """The rule that leaves ``place`` out, if one does."""
    return next((span.rule for span in spans if span.holds(place)), None)


def _module_nodes(source: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(source))


def _ruled(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The parts of one node that rules leave out."""
    if isinstance(node, ast.arg) and node.annotation:
        yield "annotation", node.annotation
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
        yield "annotation", node.returns
    if isinstance(node, ast.arguments):
        yield from (("default", each) for each in (*node.defaults, *node.kw_defaults) if each is not None)
    if isinstance(node, ast.AnnAssign):
        yield "annotation", node.annotation
    if isinstance(node, ast.ClassDef):
        yield from (("annotation", base) for base in node.bases if isinstance(base, ast.Subscript))
    if isinstance(node, ast.Module):
        yield from (("annotation", each) for each in node.body if _is_alias(each))
        yield from (("command", each) for each in node.body if _is_guard(each))
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from (("message", part) for part in _arguments(node.exc))
    if isinstance(node, ast.Call) and _name(node.func) == "warn":
        yield from (("message", part) for part in _arguments(node))
    if isinstance(node, ast.Call) and _name(node.func) in ("dataclass", "ConfigDict"):
        yield from (("declaration", part) for part in _arguments(node))


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_alias(node: ast.stmt) -> bool:
    """``Clip = Callable[[Accelerator], float]`` and the like."""
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)


def _is_guard(node: ast.stmt) -> bool:
    """``if __name__ == "__main__":`` and ``if TYPE_CHECKING:``."""
    names = (
        {_name(each) for each in ast.walk(node.test) if isinstance(each, ast.expr)}
        if isinstance(node, ast.If)
        else set()
    )
    return bool(names & {"__name__", "TYPE_CHECKING"})


def _elsewhere(file: str, source: str) -> Iterator[ast.AST]:
    wanted = {name.partition(":")[2] for name in LEFT_OUT_NAMES if name.startswith(f"{file}:")}
    kept = {name.partition(":")[2] for name in KEPT_NAMES if name.startswith(f"{file}:")}
    for name, node in _named(ast.parse(source), ""):
        if name not in wanted:
            continue
        inner = dict(_named(node, f"{name}."))
        if not kept & set(inner):
            yield node
            continue
        yield from (
            part for part in ast.iter_child_nodes(node) if not any(part is inner[each] for each in kept & set(inner))
        )


def _sizes(file: str, source: str) -> Iterator[ast.AST]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield from [node] if node.targets[0].id in SIZES.get(file, ()) else []


def _named(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes of a module or a class, one level of classes deep."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _named(node, f"{prefix}{node.name}.")


def _span(lines: list[str], rule: str, node: Any) -> Span:
    """The whole node; a decorator's begins at its ``@``."""
    decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
    start = (min(decorators), 0) if decorators else _place(lines, node.lineno, node.col_offset)
    return Span(rule, start, _place(lines, node.end_lineno, node.end_col_offset))


def _place(lines: list[str], line: int, offset: int) -> Place:
    """ast counts bytes."""
    return line, len(lines[line - 1].encode()[:offset].decode())
